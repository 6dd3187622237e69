"""The training API of a real daemon: what it says is what lies in the files."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import durable
from config import Paths
from monitoring.alert_log import AlertLog
from monitoring.training_status import StatusWriter, TrainingStatus
from tests.daemon_base import LONG, Base
from tests.serving.served import Client, Served
from tests.training.ledger.run_folders import Folder
from tests.waiting import wait_until
from training.checkpoint_scorer import CheckpointHistory
from training.checkpoints import CheckpointFacts, seal

ON = ("serving.monitor=true", "serving.monitor_port=0")


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Base]:
    base = Base(tmp_path)
    yield base
    base.close()


def categories(base: Base) -> set[str]:
    return set() if base.status is None else {alert.category for alert in base.status.active_alerts}


def monitor_of(base: Base) -> Client:
    wait_until(base.paths.monitor_address.exists)
    return Client(durable.read_json(base.paths.monitor_address)["url"])


def history_of(client: Client, category: str) -> list[str]:
    history = client.get("/api/alerts").json()["history"]
    return [one["kind"] for one in history if one["category"] == category]


@pytest.mark.config_key("serving.monitor")
def test_a_daemon_serves_what_it_did_and_stops_serving_when_it_ends(base: Base) -> None:
    daemon = base.start(*ON)
    client = monitor_of(base)
    base.drop(steps=6)
    base.drop("bad.jsonl", refuse="as the script says")
    wait_until(lambda: len(base.files("done") | base.files("rejected")) == 2)
    done, refused = base.jobs()
    assert [job["state"] for job in client.get("/api/training/jobs").json()["jobs"]] == [
        "refused",
        "completed",
    ]
    assert [job["number"] for job in client.get("/api/training/jobs?limit=1").json()["jobs"]] == [2]

    job = client.get(f"/api/training/jobs/{done.job_id}").json()
    assert (job["step"], job["total_steps"], job["version"], job["decision"]) == (6, 6, "v0001", "promote")
    assert job["started_at"] is not None and job["report"]["usable"] and job["plan"] is None
    assert (
        client.get(f"/api/training/jobs/{refused.job_id}").json()["report"]["reason"] == "as the script says"
    )

    metrics = client.get(f"/api/training/jobs/{done.job_id}/metrics").json()
    assert (metrics["points"], metrics["steps"]["step"]) == (6, [1, 2, 3, 4, 5, 6])
    assert metrics["checkpoints"] == [{"step": 6, "eval_loss": 1 / 6, "score": None, "is_best": True}]
    assert client.get(f"/api/training/jobs/{done.job_id}/evolution").json() == {"examples": []}

    versions = client.get("/api/versions").json()
    assert (versions["current"], versions["matrix"]) == ("v0001", None)
    assert [(one["name"], one["is_current"], one["job_id"]) for one in versions["versions"]] == [
        ("v0001", True, done.job_id)
    ]
    inbox = client.get("/api/inbox").json()
    assert (inbox["waiting"], inbox["queued"]) == ([], [])
    assert [(one["name"], one["place"]) for one in inbox["recent"]] == [
        ("bad.jsonl", "rejected"),
        ("a.jsonl", "done"),
    ]
    base.end(daemon)
    assert not base.paths.monitor_address.exists()


def test_a_running_job_is_shown_as_it_goes_and_clients_do_not_stop_it(base: Base) -> None:
    daemon = base.start(*ON)
    client = monitor_of(base)
    base.drop(**LONG)
    wait_until(lambda: base.is_at_step(5))
    (job,) = client.get("/api/training/jobs").json()["jobs"]
    assert job["state"] == "running" and job["step"] >= 5 and job["total_steps"] == 100_000
    assert [one["job_id"] for one in client.get("/api/inbox").json()["queued"]] == [job["job_id"]]
    with closing(client.listen()) as listener:
        told = [listener.next("status")["batch_step"] for _ in range(3)]
    assert told == sorted(set(told))
    before = told[-1]
    wait_until(lambda: base.is_at_step(before + 5))
    assert (
        TrainingStatus.model_validate_json(client.get("/status/training_status.json").body).state
        == "training"
    )
    wait_until(lambda: client.get("/health").json()["status"] == "ok")
    (worker,) = base.workers()
    wait_until(lambda: (base.status.memory["training_process"] or {}).get("pid") == worker.pid)
    with closing(client.listen()):  # who still listens does not keep the daemon from ending
        base.end(daemon)
    assert not base.paths.monitor_address.exists()


def test_a_port_in_use_is_an_alert_until_it_is_free_and_training_goes_on(base: Base) -> None:
    with Served(Paths(base.paths.base.parent / "other")) as other:
        base.drop()
        daemon = base.start("serving.monitor=true", f"serving.monitor_port={other.port}")
        wait_until(lambda: "not_served" in categories(base))
        wait_until(lambda: base.files("done") == {"a.jsonl"})
        (alert,) = [one for one in base.status.active_alerts if one.category == "not_served"]
        assert "Address already in use" in alert.message
        assert "serving.monitor_port" in alert.recommendation
        assert "Address already in use" in base.status.monitor_trouble
    wait_until(lambda: "not_served" not in categories(base))
    assert base.status.monitor_trouble is None
    client = Client(durable.read_json(base.paths.monitor_address)["url"])
    assert client.get("/health").status == 200
    wait_until(lambda: history_of(client, "not_served") == ["resolved", "raised"])
    log = base.end(daemon)
    assert [log.count(f"Alert not_served {kind}") for kind in ("raised", "resolved")] == [1, 1]


def test_alert_of_a_run_is_told_to_end_when_the_next_run_begins(base: Base) -> None:
    base.drop(fail="nan")
    base.drop("b.jsonl")
    base.run()
    failed, _ = base.jobs()
    with Served(base.paths) as client:
        alerts = client.get("/api/alerts").json()
    assert alerts["active"] == []
    told = [(one["kind"], one["job_id"]) for one in alerts["history"] if one["category"] == "nan_loss"]
    assert told == [("resolved", None), ("raised", failed.job_id)]


def test_without_a_monitor_nothing_is_served(base: Base) -> None:
    log = base.run("serving.monitor=false", "serving.monitor_port=0")
    assert "Monitor at" not in log
    assert base.status.monitor_trouble is None


def test_health_says_when_the_daemon_has_died(base: Base) -> None:
    daemon = base.start("monitoring.status_seconds=10")
    wait_until(lambda: base.is_in("idle"))
    with Served(base.paths) as client:
        assert (client.get("/health").status, client.get("/health").json()["status"]) == (200, "ok")
        daemon.kill()
        daemon.wait()
        answer = client.get("/health")
        assert (answer.status, answer.json()["status"]) == (503, "stale")


def test_health_tells_a_daemon_that_was_stopped_from_one_that_died(base: Base) -> None:
    base.run()
    with Served(base.paths) as client:
        assert client.get("/health").json()["status"] == "stopped"


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def checkpoint(
    folder: Folder, job_id: str, history: CheckpointHistory, step: int, loss: float, train_loss: float = 0.3
) -> None:
    place = folder.paths.run(job_id).checkpoint(step)
    place.mkdir()
    (place / "adapter_model.safetensors").write_bytes(b"12345")
    facts = CheckpointFacts(
        step=step,
        epoch=step / 10,
        tokens=1,
        precision="float32",
        micro_batch=1,
        eval_loss=loss,
        is_candidate=True,
    )
    seal(place, facts, history.add(step, loss, train_loss))


def test_checkpoints_are_listed_newest_first_with_score_parts_and_the_best(folder: Folder) -> None:
    job = folder.job(1)
    history = CheckpointHistory()
    for step, loss in ((9, 0.5), (10, 0.4), (100, 0.9)):
        checkpoint(folder, job.job_id, history, step, loss)
    with Served(folder.paths) as client:
        answer = client.get(f"/api/training/checkpoints/{job.job_id}").json()
    entries = answer["checkpoints"]
    assert [entry["step"] for entry in entries] == [100, 10, 9]
    assert [entry["is_best"] for entry in entries] == [False, True, False]
    assert [entry["is_latest"] for entry in entries] == [True, False, False]
    assert entries[1] == answer["best_checkpoint"]
    known = {one.step: one for one in history.scored}
    assert entries[1]["score"] == pytest.approx(known[10].score)
    assert sum(entries[1]["parts"].values()) == pytest.approx(known[10].score)
    assert entries[0]["path"].endswith("checkpoint-100") and entries[0]["size_bytes"] > 5


def test_a_run_without_checkpoints_says_so(folder: Folder) -> None:
    job = folder.job(1)
    with Served(folder.paths) as client:
        answer = client.get(f"/api/training/checkpoints/{job.job_id}")
    assert (answer.status, answer.json()["checkpoints"], answer.json()["message"]) == (
        200,
        [],
        "no checkpoint yet",
    )


def test_the_run_says_by_what_its_best_checkpoint_is_chosen(folder: Folder) -> None:
    job = folder.job(1)
    run = folder.paths.run(job.job_id)
    history = CheckpointHistory()
    for step, losses in enumerate(((2.5, 2.8), (1.2, 1.1), (0.8, 0.75), (0.75, 0.3)), 1):
        checkpoint(folder, job.job_id, history, step, *losses)
    config = run.config_file.read_text()
    best = {}
    with Served(folder.paths) as client:
        for selection in ("score", "eval_loss"):
            run.config_file.write_text(config.replace("selection: score", f"selection: {selection}"))
            answer = client.get(f"/api/training/checkpoints/{job.job_id}").json()
            best[selection] = answer["best_checkpoint"]["step"]
    assert best == {"score": 3, "eval_loss": 4}


def test_answers_evolve_by_example_and_step(folder: Folder) -> None:
    job = folder.job(1)
    run = folder.paths.run(job.job_id)
    durable.make_folder(run.evolution)
    for step in (0, 10, 1000):
        example = {
            "example_id": "e1",
            "step": step,
            "system_prompt": "Be brief.",
            "input": "Hello",
            "expected_output": "Hi",
            "model_output": f"answer at {step}",
            "loss": 0.5,
            "exact_match": step == 1000,
        }
        durable.write_json(run.evolution / f"step_{step:06d}.json", {"examples": [example]})
    with Served(folder.paths) as client:
        path = f"/api/training/jobs/{job.job_id}/evolution"
        (example,) = client.get(path).json()["examples"]
        (thinned,) = client.get(f"{path}?max_answers=2").json()["examples"]
    assert [answer["step"] for answer in example["answers"]] == [0, 10, 1000]
    assert [answer["matches"] for answer in example["answers"]] == [False, False, True]
    assert (example["system_prompt"], example["prompt"], example["golden"]) == ("Be brief.", "Hello", "Hi")
    assert [answer["step"] for answer in thinned["answers"]] == [0, 1000]


def test_alerts_of_runs_and_of_the_time_between_stay_to_be_seen(folder: Folder) -> None:
    from monitoring.events import AlertEvent

    def alert(kind: str, message: str) -> AlertEvent:
        return AlertEvent.model_validate(
            {
                "kind": kind,
                "severity": "warning",
                "category": "loss_spike",
                "message": message,
                "details": {"step": 3},
                "recommendation": "Look.",
            }
        )

    first = folder.job(1, alert("raised", "one"), alert("resolved", "one"))
    with Served(folder.paths) as client:
        assert client.get("/api/alerts").json()["active"] == []
        folder.job(2, alert("raised", "two"))
        folder.say(first, alert("raised", "late"))
        AlertLog(folder.paths.alerts).keep(alert("raised", "between"))
        history = client.get("/api/alerts").json()["history"]
    told = [((one["job_id"] or "no job")[:6], one["kind"], one["message"]) for one in history]
    assert told == [
        ("no job", "raised", "between"),
        ("000002", "raised", "two"),
        ("000001", "raised", "late"),
        ("000001", "resolved", "one"),
        ("000001", "raised", "one"),
    ]


def test_damaged_runs_and_versions_are_left_out(folder: Folder) -> None:
    good, damaged = folder.job(1), folder.job(2)
    folder.paths.run(damaged.job_id).job_file.write_text("{")
    (folder.paths.versions / "v0001").mkdir()
    with Served(folder.paths) as client:
        jobs = client.get("/api/training/jobs").json()["jobs"]
        assert [job["job_id"] for job in jobs] == [good.job_id]
        assert client.get(f"/api/training/jobs/{damaged.job_id}").status == 404
        assert client.get("/api/versions").json()["versions"] == []


def test_files_that_wait_are_shown_with_their_priority(folder: Folder) -> None:
    high = folder.paths.inbox / "high"
    high.mkdir()
    (high / "b.jsonl").write_bytes(b"123")
    (folder.paths.inbox / "left.txt").write_bytes(b"no")
    with Served(folder.paths) as client:
        assert client.get("/api/inbox").json()["waiting"] == [
            {"name": "b.jsonl", "size_bytes": 3, "priority": "high"}
        ]


@pytest.mark.parametrize(
    "path",
    ["/nothing", "/api/training/jobs/000099-00000000", "/status/training_status.json", "/web/nothing.js"],
)
def test_what_is_not_there_is_told_as_json(folder: Folder, path: str) -> None:
    with Served(folder.paths) as client:
        answer = client.get(path)
    assert (answer.status, answer.headers["content-type"]) == (404, "application/json")
    assert set(answer.json()) == {"detail"}


@pytest.mark.parametrize("job_id", ["x", "000001", "000001-0000000G", "1-00000000", "000001-00000000x"])
def test_what_is_no_job_id_is_refused(folder: Folder, job_id: str) -> None:
    with Served(folder.paths) as client:
        assert client.get(f"/api/training/jobs/{job_id}").status == 422


def test_the_api_page_names_every_route_and_needs_nothing_from_elsewhere(folder: Folder) -> None:
    with Served(folder.paths) as client:
        document = client.get("/openapi.json").json()
        page = client.get("/docs").body.decode()
    for path in document["paths"]:
        assert f"<code>GET {path}</code>" in page
    assert "<script" not in page and "https://" not in page and "http://" not in page
    assert json.loads(json.dumps(document))["info"]["title"] == "trainbox monitor"


@pytest.mark.parametrize("path", ["/openapi.json", "/web/main.js", "/web/style.css", "/docs"])
def test_long_answers_are_packed_for_those_who_can_unpack_them(tmp_path: Path, path: str) -> None:
    with Served(Paths(tmp_path)) as client:
        plain, packed = client.get(path), client.get(path, accept_encoding="gzip, br")
        assert "content-encoding" not in plain.headers
        assert packed.headers["content-encoding"] == "gzip"
        assert "accept-encoding" in packed.headers["vary"].lower()
        assert len(packed.body) < len(plain.body) / 2
        assert gzip.decompress(packed.body) == plain.body


def test_short_answers_are_not_worth_packing(tmp_path: Path) -> None:
    with Served(Paths(tmp_path)) as client:
        assert "content-encoding" not in client.get("/health", accept_encoding="gzip").headers


def test_events_are_never_held_back_to_be_packed(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    with Served(paths) as client:
        writer = StatusWriter(paths.status_file, interval_seconds=2.0)
        writer.write()
        with closing(client.listen(accept_encoding="gzip")) as listener:
            for message in ("first", "second"):
                writer.update(message=message)
                wait_until(lambda message=message: listener.next("status")["message"] == message)  # type: ignore[misc]
