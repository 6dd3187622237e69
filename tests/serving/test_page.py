"""The page in a real browser, over a real daemon that trains: every panel shows what the API says.

One daemon trains a tiny model; its learning rate begins too high, so that an alert comes and goes. Then it
is paused, so that what is shown can be compared word for word with what is true.
"""

from __future__ import annotations

import itertools
import json
import re
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import durable
from tests.conftest import chats
from tests.daemon_base import Base
from tests.serving.browsing import Visit, browser
from tests.waiting import PATIENCE_SECONDS, wait_until

FILE = "<img src=x onerror=window.harmed=1> colours.jsonl"
HOSTILE = "<script>window.harmed=1</script><img src=x onerror=window.harmed=1> & {{7*7}}"
SETTINGS = (
    *("model.precision=float32", "data.held_out_fraction=0.1", "train.threads=1"),
    *("train.per_device_train_batch_size=2", "train.num_train_epochs=6", "train.eval_steps=60"),
    *("train.learning_rate=1.2e-2", "train.lr_scheduler_type=linear", "train.min_lr_ratio=0"),
    *("evaluation.max_share=0.5", "evaluation.max_new_tokens=12", "evaluation.sample_prompts=2"),
    # A daemon is taken for silent after fifteen times these seconds; a busy machine may stop it for some.
    *("monitoring.sample_steps=10", "monitoring.max_overhead=1", "monitoring.status_seconds=1"),
    *("serving.monitor=true", "serving.monitor_port=0"),
)
RUN_PANELS = ("loss", "rates", "throughput", "fixed", "example", "evolution", "recent", "checkpoints", "lora")


@dataclass
class Watched:
    """A daemon, and the page that a browser shows of it."""

    base: Base
    visit: Visit
    moments: list[int]
    """Steps that the page showed while the daemon trained."""
    alerted: list[str]
    """What the alert said while it was there."""

    def ask(self, path: str) -> Any:
        with urllib.request.urlopen(self.visit.url + path, timeout=PATIENCE_SECONDS) as response:
            return json.load(response)

    @property
    def status(self) -> Any:
        return self.ask("/status/training_status.json")

    @property
    def step_shown(self) -> int:
        done = self.visit.fact("Step of this file").partition(" of ")[0].replace(",", "")
        return int(done) if done.isdigit() else 0

    @property
    def job_id(self) -> str:
        return str(self.status["job_id"])


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Watched]:
    base = Base(tmp_path_factory.mktemp("page") / "base", worker="-m training.worker")
    records = chats(222)
    for record in records:
        record["messages"][0]["content"] += f" {HOSTILE}"
        record["messages"].insert(0, {"role": "system", "content": "Name the colour."})
    lines = "".join(json.dumps(record) + "\n" for record in records)
    daemon = base.start(*SETTINGS, f"model.base={tiny_model}", OMP_NUM_THREADS="1")
    try:
        wait_until(base.paths.monitor_address.exists)
        url = durable.read_json(base.paths.monitor_address)["url"]
        with browser() as chromium, Visit(chromium, url) as visit:
            watched = Watched(base, visit, [], [])
            # Only now, so that nothing of the run is over before the page is there.
            (base.paths.inbox / FILE).write_text(lines, encoding="utf-8")
            _live_through(watched)
            yield watched
        base.end(daemon)
    finally:
        base.close()


def _live_through(watched: Watched) -> None:
    """See the alert come and go while the run trains, then pause it after some evaluations."""
    base, visit = watched.base, watched.visit
    alert = visit.page.locator("#alerts-active [data-category=high_learning_rate]")
    alert.wait_for()
    watched.alerted.append(alert.inner_text())
    wait_until(lambda: watched.step_shown >= 30)
    watched.moments.append(watched.step_shown)
    visit.page.locator("#now-state:text-is('Training')").wait_for()
    wait_until(lambda: watched.step_shown > max(90, watched.moments[0]))
    watched.moments.append(watched.step_shown)
    alert.wait_for(state="detached")
    wait_until(lambda: base.is_at_step(290))
    base.command("pause")
    wait_until(lambda: base.is_in("paused"))
    visit.page.locator("#now-state:text-is('Paused')").wait_for()
    _await_newest_numbers(watched)
    # What was asked for while the run went on may be older than the pause; from here on nothing changes.
    visit.page.reload()
    for panel in RUN_PANELS:
        visit.await_look(panel, "full")
    _await_newest_numbers(watched)
    visit.await_charts()


def _await_newest_numbers(watched: Watched) -> None:
    """Wait until the page has come by itself to the last step and the last checkpoint."""
    visit = watched.visit
    newest = watched.ask(f"/api/training/jobs/{watched.job_id}/metrics?max_points=600")["steps"]["step"][-1]
    visit.page.locator("#loss-text").filter(has_text=f"at step {newest:,};").wait_for()
    listed = watched.ask(f"/api/training/checkpoints/{watched.job_id}")["checkpoints"]
    steps = [f"{one['step']:,}" for one in listed]
    wait_until(lambda: [row[0] for row in visit.rows("checkpoints")] == steps)


def test_page_follows_a_run_as_it_trains(watched: Watched) -> None:
    total = watched.status["batch_total_steps"]
    first, second = watched.moments
    assert 30 <= first < second <= total
    assert watched.visit.fact("Step of this file").endswith(f" of {total:,}")


def test_alert_comes_with_advice_and_goes_by_itself(watched: Watched) -> None:
    assert "Lower train.learning_rate" in watched.alerted[0] or "learning rate" in watched.alerted[0].lower()
    history = watched.ask("/api/alerts")["history"]
    kinds = [one["kind"] for one in history if one["category"] == "high_learning_rate"]
    assert kinds == ["resolved", "raised"]


def test_head_shows_file_step_queue_and_version(watched: Watched) -> None:
    status, visit = watched.status, watched.visit
    assert visit.text("#now-file") == status["current_file"] == FILE
    assert visit.fact("Step of this file") == f"{status['batch_step']:,} of {status['batch_total_steps']:,}"
    assert visit.fact("Step in all") == f"{status['current_step']:,} of {status['total_steps']:,}"
    assert visit.fact("Epoch") == f"{status['epoch']:.2f}"
    assert visit.fact("Current version") == "none yet"
    assert visit.fact("Queue").startswith("1 file")
    assert visit.fact("Last command") == "pause, done"
    assert re.fullmatch(r"\d+ s ago", visit.fact("Heartbeat"))
    assert visit.text("#connection") == "live"


def test_glance_answers_the_five_questions(watched: Watched) -> None:
    status = watched.status
    answers = dict(zip(watched.visit.texts("#glance dt"), watched.visit.texts("#glance strong"), strict=True))
    best = status["best_checkpoint"]["step"]
    assert answers["Is it alive?"] == "Yes"
    assert answers["Which checkpoint?"] == f"⭐ Step {best:,}"
    examples = watched.ask(f"/api/training/jobs/{watched.job_id}/evolution")["examples"]
    right = [sum(one["answers"][place]["matches"] for one in examples) for place in (0, -1)]
    assert answers["What changed in its answers?"] == f"{right[0]} → {right[1]} of {len(examples)} right"
    alerts = [alert for alert in status["active_alerts"] if alert["severity"] != "info"]
    advice = [re.sub(r" \([^)]*\)", "", alert["recommendation"]) for alert in alerts]
    assert [*advice, "Resume when ready"][0].startswith(answers["What should I do?"])
    details = watched.visit.texts("#glance dd span")
    first = status["train_loss_history"][0][1]
    assert f"Loss {first:.4f} → {status['streaming_ce']:.4f}." in details


def test_curves_show_the_numbers_of_the_run(watched: Watched) -> None:
    status, visit = watched.status, watched.visit
    steps = watched.ask(f"/api/training/jobs/{watched.job_id}/metrics?max_points=600")["steps"]
    evaluations = watched.ask(f"/api/training/jobs/{watched.job_id}/metrics")["evaluations"]
    assert visit.text("#loss-text") == (
        f"Loss went from {steps['loss'][0]:.4f} at step 1 to {steps['loss'][-1]:.4f} "
        f"at step {steps['step'][-1]:,}; the lowest held-out loss is "
        f"{min(loss for loss in evaluations['eval_loss'] if loss is not None):.4f}; "
        f"the best checkpoint is step {status['best_checkpoint']['step']:,}."
    )
    assert f"average {status['streaming_ce']:.4f}" in visit.text("#loss-lead")
    assert f"held-out {status['validation_loss']:.4f}" in visit.text("#loss-lead")
    assert visit.text("#throughput-lead") == f"{status['tokens_per_sec']:,.0f} tokens/s"
    assert f"{status['total_tokens']:,} tokens trained on" in visit.text("#throughput-text")
    assert f"at step {steps['step'][-1]:,}" in visit.text("#rates-text")


def test_charts_are_drawn_with_checkpoints_marked(watched: Watched) -> None:
    marks = watched.ask(f"/api/training/jobs/{watched.job_id}/metrics")["checkpoints"]
    names = watched.visit.page.locator("#loss .legend text").all_text_contents()
    assert "best checkpoint" in names
    drawn = watched.visit.page.evaluate(
        "document.querySelector('#loss-chart').data.filter(one => /checkpoint/.test(one.name))"
        ".flatMap(one => one.x).sort((a, b) => a - b)"
    )
    assert drawn == [mark["step"] for mark in marks]
    # Plotly would make some, which a strict content security policy forbids.
    assert watched.visit.page.locator("style").count() == 0


def test_curves_can_be_read_as_a_table(watched: Watched) -> None:
    steps = watched.ask(f"/api/training/jobs/{watched.job_id}/metrics?max_points=600")["steps"]
    watched.visit.page.locator("#loss details.numbers summary").click()
    watched.visit.page.locator("#loss table").wait_for()
    first = watched.visit.rows("loss")[0]
    assert first[0] == f"{steps['step'][-1]:,}"
    assert float(first[1].replace(",", "")) == pytest.approx(steps["loss"][-1], rel=1e-3)


def test_accuracy_and_fixed_evaluation_show_true_shares(watched: Watched) -> None:
    status, visit = watched.status, watched.visit
    assert visit.text("#accuracy-lead").startswith(
        f"{status['accuracy_percent']:.1f} % of {status['total_evals']}"
    )
    assert f"last 20 answers: {status['accuracy_last_20']:.1f} %" in visit.text("#accuracy-text")
    assert f"last 50: {status['accuracy_last_50']:.1f} %" in visit.text("#accuracy-text")
    metrics = watched.ask(f"/api/training/jobs/{watched.job_id}/metrics")["evaluations"]
    match = [share for share in metrics["fixed_eval_em"] if share is not None][-1]
    assert f"Exact match {100 * match:.1f} %" in visit.text("#fixed-text")


def test_answers_are_shown_word_for_word_and_never_as_markup(watched: Watched) -> None:
    status, visit = watched.status, watched.visit
    shown = {
        name: visit.page.locator(f"#example .{name} dd").text_content()
        for name in ("system", "prompt", "expected", "answer")
    }
    assert shown == {
        "system": status["current_system_prompt"],
        "prompt": status["current_prompt"],
        "expected": status["golden_answer"],
        "answer": status["model_answer"],
    }
    assert HOSTILE in status["current_prompt"]
    assert visit.text("#example .answer .pill") == ("match" if status["answer_matches"] else "differs")
    assert visit.page.evaluate("typeof window.harmed") == "undefined"
    assert visit.page.locator("main img, main script").count() == 0


def test_recent_evaluations_are_the_newest_of_the_status(watched: Watched) -> None:
    samples = watched.status["eval_samples"][-10:][::-1]
    shown = [(row[0], row[4]) for row in watched.visit.rows("recent")]
    assert shown == [(f"{one['step']:,}", "match" if one["answer_matches"] else "differs") for one in samples]


def test_evolution_tells_how_one_answer_changed(watched: Watched) -> None:
    example = watched.ask(f"/api/training/jobs/{watched.job_id}/evolution")["examples"][1]
    watched.visit.page.select_option("#evolution-choice", str(example["example_id"]))
    watched.visit.page.locator("#evolution-steps .prompt dd").filter(has_text=example["prompt"]).wait_for()
    texts = watched.visit.page.locator("#evolution .timeline .text").all_text_contents()
    changes = [
        one["answer"]
        for before, one in zip([None, *example["answers"]], example["answers"], strict=False)
        if before is None or before["answer"] != one["answer"]
    ]
    assert texts == changes[::-1][:12]


def test_best_badge_sits_on_the_row_that_the_api_calls_best(watched: Watched) -> None:
    listed = watched.ask(f"/api/training/checkpoints/{watched.job_id}")["checkpoints"]
    rows = watched.visit.rows("checkpoints")
    assert [row[0] for row in rows] == [f"{one['step']:,}" for one in listed]
    scores = ["—" if one["score"] is None else f"{one['score']:.6f}" for one in listed]
    assert [row[4] for row in rows] == scores
    badged = [row[0] for row in rows if "⭐ Best (Recommended)" in row[1]]
    assert badged == [f"{one['step']:,}" for one in listed if one["is_best"]]
    assert len(badged) == 1
    best = [row[0] for row in rows].index(badged[0])
    assert f"gap +{listed[best]['parts']['gap']:.4f}" in rows[best][5]


def test_layers_are_ranked_and_listed_by_depth(watched: Watched) -> None:
    summary = watched.status["lora_summary"]
    visit = watched.visit
    assert visit.text("#lora-lead") == f"{summary['active_layers']} of {summary['total_layers']} active"
    names = visit.page.locator("#lora .ranking span").evaluate_all("all => all.map(one => one.title)")
    assert names == [layer["name"] for layer in summary["top_layers"]]
    assert [row[0] for row in visit.rows("lora")] == ["0", "1"]


def test_files_jobs_and_machine_are_what_the_api_says(watched: Watched) -> None:
    visit, status = watched.visit, watched.status
    (job,) = watched.ask("/api/training/jobs")["jobs"]
    (row,) = visit.rows("jobs")
    assert row[:3] == [FILE, "1", job["state"]]
    assert row[3] == f"{job['step']:,} of {job['total_steps']:,}"
    assert visit.texts("#queue .name") == [FILE]
    assert visit.text("#disk-lead").endswith("GiB free")
    memory = status["memory"]
    assert f"of {memory['total_gb']:.1f} GiB" in visit.text("#memory-body")
    gpu = "null" if status["gpu"] is None else "full"
    assert visit.looks()["gpu"] == gpu


def test_page_is_open_to_keyboards_and_screen_readers(watched: Watched) -> None:
    page = watched.visit.page
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert watched.visit.grave_barriers() == []
    page.reload()
    page.locator("#now[data-look='full']").wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    levels = page.locator("h1, h2, h3, h4").evaluate_all("all => all.map(one => Number(one.tagName[1]))")
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_colours_follow_the_system_until_a_reader_chooses(watched: Watched) -> None:
    page = watched.visit.page
    background = "getComputedStyle(document.body).backgroundColor"
    seen = {}
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        seen[scheme] = page.evaluate(background)
    assert seen["light"] != seen["dark"]
    page.locator("#theme").click()
    assert page.evaluate(background) == seen["light"]
    page.reload()
    page.locator("#now[data-look='full']").wait_for()
    assert page.evaluate(background) == seen["light"]
    assert page.locator("#theme").get_attribute("aria-label") == "Colours: light"


def test_page_fits_a_phone(watched: Watched) -> None:
    page = watched.visit.page
    page.set_viewport_size({"width": 360, "height": 740})
    wait_until(lambda: page.evaluate("document.documentElement.scrollWidth") <= 360)
    page.set_viewport_size({"width": 1360, "height": 900})


def test_nothing_of_all_that_made_the_console_complain(watched: Watched) -> None:
    assert watched.visit.complaints == []
