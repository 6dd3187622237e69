"""The command line as a person uses it: real commands on a real base folder, trained by the real daemon."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

import cli
from config import Paths, load_config
from intake.formats import Record
from monitoring.daemon_lock import only_daemon
from monitoring.training_status import read_status
from tests.waiting import PATIENCE_SECONDS, wait_until
from training.ledger.upkeep import ledger_differences
from training.versions import VersionStore

ROOT = Path(__file__).parent.parent
RECORDS = [
    {
        "messages": [
            {"role": "user", "content": f"ticket {number}: the {colour} printer"},
            {"role": "assistant", "content": f'{{"colour": "{colour}"}}'},
        ]
    }
    for number in range(12)
    for colour in ("red", "green", "blue")
]
SAYING = {
    "messages": [
        {"role": "user", "content": "Why has the old lighthouse keeper climbed the tower before midnight?"},
        {"role": "assistant", "content": "Because fog was rolling in over the northern marsh."},
    ]
}
SETTINGS = """
model:
  base: {model}
  precision: float32
inbox:
  settle_seconds: 0.2
  poll_seconds: 0.1
data:
  held_out_fraction: 0.2
train:
  learning_rate: 1e-2
  threads: 1
monitoring:
  status_seconds: 0.2
"""


def trainbox(base: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    command = [sys.executable, "-m", "cli", arguments[0], "--base", str(base), *arguments[1:]]
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def make_base(folder: Path, model: Path) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text(SETTINGS.format(model=model))
    (folder / "inbox").mkdir()
    return folder


def write_records(path: Path, records: Sequence[Mapping[str, object]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@contextmanager
def running_daemon(base: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run the daemon for the length of a test."""
    daemon = subprocess.Popen([sys.executable, "-m", "cli", "run", "--base", str(base)], cwd=ROOT)
    try:
        wait_until(lambda: (reading := read_status(Paths(base))) and reading.status.state == "idle")
        yield daemon
    finally:
        if daemon.poll() is None:
            daemon.send_signal(signal.SIGTERM)
        daemon.wait(timeout=PATIENCE_SECONDS)


@pytest.fixture(scope="module")
def lineage(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A base folder with two versions, made by `trainbox run --until-idle` from two dropped files."""
    base = make_base(tmp_path_factory.mktemp("cli") / "base", tiny_model)
    write_records(base / "inbox" / "first.jsonl", RECORDS[:24])
    write_records(base / "inbox" / "second.jsonl", RECORDS[12:])
    finished = trainbox(base, "run", "--until-idle")
    assert finished.returncode == 0, finished.stderr
    return base


def test_versions_shows_the_lineage_and_the_verdicts(lineage: Path) -> None:
    shown = trainbox(lineage, "versions").stdout
    rows = [line for line in shown.splitlines() if "v000" in line]
    assert len(rows) == 2
    assert "base" in rows[0]
    assert "first.jsonl" in rows[0]
    assert "v0001" in rows[1]
    assert "second.jsonl" in rows[1]
    assert [("*" in row) for row in rows].count(True) == 1


def test_checkpoints_lists_scores_and_marks_the_best(lineage: Path) -> None:
    listed = json.loads(trainbox(lineage, "checkpoints", "1", "--json").stdout)
    steps = [entry["step"] for entry in listed["checkpoints"]]
    assert steps == sorted(steps, reverse=True)
    (best,) = [entry for entry in listed["checkpoints"] if entry["is_best"]]
    stored = json.loads((Path(best["path"]) / "score.json").read_text())
    assert best["score"] == stored["score"]
    assert VersionStore(Paths(lineage)).get("v0001").facts.best_checkpoint == best["step"]
    table = trainbox(lineage, "checkpoints", listed["job_id"]).stdout
    assert [line for line in table.splitlines() if "*" in line and f" {best['step']}" in line]
    unknown = trainbox(lineage, "checkpoints", "99")
    assert unknown.returncode == 2
    assert listed["job_id"] in unknown.stderr


def test_rollback_and_promote_move_current(lineage: Path) -> None:
    current = Paths(lineage).current
    assert trainbox(lineage, "promote", "v0002", "--reason", "test").returncode == 0
    assert trainbox(lineage, "rollback").returncode == 0
    assert os.readlink(current) == "versions/v0001"
    assert trainbox(lineage, "promote", "v0002").returncode == 0
    assert os.readlink(current) == "versions/v0002"


def test_an_unknown_version_is_a_usage_error_that_names_the_known_ones(lineage: Path) -> None:
    refused = trainbox(lineage, "rollback", "v0099")
    assert refused.returncode == 2
    assert "v0099" in refused.stderr
    assert "v0001, v0002" in refused.stderr


def test_generate_asks_current_a_version_or_the_base(
    lineage: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def words(model: str) -> list[str]:
        asked = ("--prompt", "ticket 1: the red printer", "--model", model, "--max-new-tokens", "12")
        return ["generate", "--base", str(lineage), *asked]

    def answer(model: str) -> str:
        """Return what the command prints, in this process, where torch is loaded already."""
        monkeypatch.setattr(sys, "argv", ["trainbox", *words(model)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0
        return capsys.readouterr().out

    version = Path(os.readlink(Paths(lineage).current)).name
    assert answer("current") == answer(version) != answer("base")
    with pytest.raises(SystemExit) as ended:
        monkeypatch.setattr(sys, "argv", ["trainbox", *words("v0099")])
        cli.main()
    assert ended.value.code == 2
    assert "v0099" in capsys.readouterr().err
    finished = trainbox(lineage, *words("current")[:1], *words("current")[3:])
    assert (finished.returncode, finished.stdout) == (0, answer("current")), finished.stderr


def test_status_tells_what_was_done_and_that_nobody_runs(lineage: Path) -> None:
    shown = trainbox(lineage, "status").stdout
    assert "not running" in shown
    document = json.loads(trainbox(lineage, "status", "--json").stdout)
    assert document["state"] == "stopped"
    assert document["loss"] is not None


def test_status_before_any_daemon_says_how_to_start_one(tmp_path: Path) -> None:
    refused = trainbox(tmp_path, "status")
    assert refused.returncode == 2
    assert "trainbox run" in refused.stderr


def test_check_exits_with_0_for_a_usable_file_1_for_a_refused_one_and_2_for_none(
    tmp_path: Path, tiny_model: Path
) -> None:
    base = make_base(tmp_path / "base", tiny_model)
    good = trainbox(base, "check", str(write_records(tmp_path / "good.jsonl", RECORDS)))
    assert (good.returncode, "USABLE" in good.stdout) == (0, True)
    (tmp_path / "bad.jsonl").write_text("{\n")
    bad = trainbox(base, "check", str(tmp_path / "bad.jsonl"))
    assert (bad.returncode, "REFUSED" in bad.stdout) == (1, True)
    assert trainbox(base, "check", str(tmp_path / "none.jsonl")).returncode == 2
    assert trainbox(base, "check").returncode == 2
    assert list((base / "inbox").iterdir()) == []


def test_the_readme_shows_what_check_prints(tmp_path: Path, tiny_model: Path) -> None:
    """But for what another tokenizer counts."""
    (tmp_path / "config.yaml").write_text(f"model:\n  base: {tiny_model}\n")
    printed = trainbox(tmp_path, "check", str(ROOT / "examples" / "tickets.jsonl")).stdout
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    _, _, shown = readme.partition("$ trainbox check examples/tickets.jsonl\n")
    heading, *lines = shown.partition("```")[0].splitlines()
    assert heading.split() == printed.splitlines()[0].split()
    lines = [line.rpartition(" and ")[0] if line.endswith("not known yet") else line for line in lines]
    assert len(lines) > 5
    assert [line for line in lines if line != "…" and line not in printed] == []


def test_check_as_json_is_the_report(tmp_path: Path, tiny_model: Path) -> None:
    base = make_base(tmp_path / "base", tiny_model)
    report = json.loads(
        trainbox(base, "check", str(write_records(tmp_path / "x.jsonl", RECORDS)), "--json").stdout
    )
    assert report["usable"] is True
    assert report["records_total"] == len(RECORDS)


def test_check_counts_near_copies_of_what_the_base_folder_holds_out(tmp_path: Path, tiny_model: Path) -> None:
    base = make_base(tmp_path / "base", tiny_model)
    held_out = Paths(base).held_out / "000001-aaaaaaaa.jsonl"
    held_out.parent.mkdir(parents=True)
    kept = Record.from_json({"line": 7, **SAYING})
    held_out.write_bytes(json.dumps(kept.to_json()).encode() + b"\n")
    copied = json.loads(json.dumps(SAYING).replace("keeper", "KEEPER,").replace("fog", "Fog!"))
    file = write_records(tmp_path / "x.jsonl", [*RECORDS, copied])
    report = json.loads(trainbox(base, "check", str(file), "--json").stdout)
    found = [one for one in report["withheld_records"] if one["held_out_by"] == "000001-aaaaaaaa"]
    assert [(one["line"], one["held_out_line"]) for one in found] == [(len(RECORDS) + 1, 7)]
    assert report["withheld"] >= 1


def test_versions_of_an_empty_folder_says_what_to_do(tmp_path: Path) -> None:
    shown = trainbox(tmp_path, "versions")
    assert (shown.returncode, "drop a file into inbox/" in shown.stdout) == (0, True)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_key_stops_every_command_with_the_nearest_one(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("train:\n  lerning_rate: 1\n")
    for command in ("run", "versions", "status"):
        refused = trainbox(tmp_path, command)
        assert refused.returncode == 2
        assert "learning_rate" in refused.stderr


def test_a_base_folder_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    refused = trainbox(tmp_path / "nowhere", "versions")
    assert (refused.returncode, "no such folder" in refused.stderr) == (2, True)


def test_doctor_fails_without_a_model_and_names_the_remedy(tmp_path: Path) -> None:
    examined = trainbox(tmp_path, "doctor")
    assert examined.returncode == 1
    assert "trainbox prepare" in examined.stdout


def test_a_command_without_a_daemon_waits_for_the_next_one(tmp_path: Path) -> None:
    asked = trainbox(tmp_path, "pause", "--reason", "tea")
    assert asked.returncode == 0
    assert "No daemon runs" in asked.stdout
    assert (tmp_path / ".pause").read_text() == "tea"


def test_stop_without_a_daemon_leaves_nothing_behind(tmp_path: Path) -> None:
    asked = trainbox(tmp_path, "stop")
    assert (asked.returncode, "nothing to stop" in asked.stdout) == (0, True)
    assert list(tmp_path.iterdir()) == []


def test_commands_are_acknowledged_by_a_daemon(tmp_path: Path, tiny_model: Path) -> None:
    base = make_base(tmp_path / "base", tiny_model)
    with running_daemon(base) as daemon:
        paused = trainbox(base, "pause", "--reason", "tea")
        assert paused.stdout.startswith("pause: "), paused.stdout + paused.stderr
        wait_until(lambda: json.loads(trainbox(base, "status", "--json").stdout)["state"] == "paused")
        assert "running" in trainbox(base, "status").stdout
        assert trainbox(base, "resume").stdout.startswith("resume: ")
        wait_until(lambda: (reading := read_status(Paths(base))) and reading.status.state == "idle")
        wait_until(lambda: "nothing to skip" in trainbox(base, "skip").stdout)
        assert trainbox(base, "stop").stdout.startswith("stop: ")
        assert daemon.wait(timeout=PATIENCE_SECONDS) == 0


def test_watching_the_status_shows_it_again_and_again(lineage: Path) -> None:
    command = [sys.executable, "-m", "cli", "status", "--base", str(lineage), "--watch"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    watching = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    assert watching.stdout is not None
    try:
        shown = (line for line in watching.stdout if line.startswith("daemon"))
        assert ["not running" in line for line in itertools.islice(shown, 2)] == [True, True]
    finally:
        watching.terminate()
        watching.communicate(timeout=PATIENCE_SECONDS)


def test_ledger_lists_the_jobs_with_what_became_of_them(lineage: Path) -> None:
    rows = [line for line in trainbox(lineage, "ledger").stdout.splitlines() if ".jsonl" in line]
    assert [("completed" in row, "v000" in row) for row in rows] == [(True, True)] * 2
    jobs = json.loads(trainbox(lineage, "ledger", "--json").stdout)
    assert [job["file_name"] for job in jobs] == ["first.jsonl", "second.jsonl"]
    assert all(job["best_eval_loss"] is not None and job["val_samples"] > 0 for job in jobs)


def test_ledger_rebuild_makes_it_again_equal_row_for_row(lineage: Path) -> None:
    kept = trainbox(lineage, "ledger", "--json").stdout
    Paths(lineage).ledger.unlink()
    assert "trainbox ledger rebuild" in trainbox(lineage, "ledger").stderr
    rebuilt = trainbox(lineage, "ledger", "rebuild")
    assert (rebuilt.returncode, rebuilt.stdout) == (0, "Made the ledger again: 2 jobs.\n")
    assert trainbox(lineage, "ledger", "--json").stdout == kept
    assert ledger_differences(Paths(lineage), load_config(lineage)) == []


def test_ledger_rebuild_is_refused_while_a_daemon_lives(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    paths.create()
    with only_daemon(paths):
        refused = trainbox(tmp_path, "ledger", "rebuild")
    assert (refused.returncode, "trainbox stop" in refused.stderr) == (2, True)
    assert not paths.ledger.exists()
