"""Held-out prompts answered again and again: when, at which cost, and that nothing learned is changed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from monitoring.events import Event
from tests.exactness import learned
from training.daemon_link import DaemonLink
from training.dataset import TokenRows
from training.evolution import ANOMALY_STEPS, Evolution, TimeShare, is_scheduled, similarity
from training.held_out import AnsweredExample, HeldOutExamples
from training.trainer import RecordLosses

Records = Callable[..., list[dict[str, Any]]]
STEPS = ("train.per_device_train_batch_size=2", "train.eval_steps=6", "train.lora_dropout=0.1")


def of_kind(events: Sequence[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in events if event["event"] == kind]


def kept(folder: Path) -> dict[str, Any]:
    return {path.stem: json.loads(path.read_bytes()) for path in sorted(folder.glob("*.json"))}


# --- the schedule and the budget, by themselves


def test_answers_are_due_often_at_first_and_then_each_thousandth_step() -> None:
    due = [step for step in range(24_000) if is_scheduled(step)]
    assert due[:11] == [0, 10, 25, 50, 100, 150, 200, 250, 500, 750, 1000]
    assert due[11:] == [
        *(1500, 2000, 2500, 3000, 4000, 5000, 7500, 10_000, 15_000, 20_000),
        *(21_000, 22_000, 23_000),
    ]


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("cost", [0.1, 3.0])
def test_the_share_of_the_time_is_never_above_the_budget_after_the_first(cost: float) -> None:
    clock = Clock()
    budget, spent, times = TimeShare(0.05, clock), 0.0, 0
    for step in range(2000):
        if budget.has_room():
            with budget.spend():
                clock.now += cost
            spent, times = spent + cost, times + 1
            assert step == 0 or spent <= 0.05 * clock.now + 1e-9
        clock.now += 1.0
    assert times > 1
    assert spent > 0.05 * clock.now - 2 * cost


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [("same", " same\n", 1.0), ("", "", 1.0), ("abc", "xyz", 0.0), ("abcd", "abxx", 0.5)],
)
def test_likeness_of_texts(one: str, other: str, expected: float) -> None:
    assert similarity(one, other) == expected


# --- without a model: answers that take as long as the test says


class Answers(HeldOutExamples):
    """One prompt whose answers are as long in coming as the clock is told."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock, self._seconds = clock, seconds
        self.asked = 0

    @property
    def lines(self) -> frozenset[int]:
        return frozenset({1})

    def further(self) -> list[range]:
        return []

    def answer(self, losses: Any) -> list[AnsweredExample]:
        self._clock.now += self._seconds
        self.asked += 1
        return [AnsweredExample("0" * 32, None, "2+2?", "4", 1, "5", 1, False, losses.get(1, 1.0), None)]


class Told(DaemonLink):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.command = None

    def emit(self, event: Event) -> None:
        self.events.append(event)


def no_losses(rows: TokenRows, on_batch: Callable[[], None]) -> RecordLosses:
    raise AssertionError("there are no rows")


def evolve(folder: Path, seconds: float, share: float = 0.05) -> tuple[Evolution, Clock, Answers, Told]:
    clock, link = Clock(), Told()
    answers = Answers(clock, seconds)
    evolution = Evolution(folder, answers, link, max_share=share, model_version="v0001", clock=clock)
    evolution.attach(no_losses, None)
    return evolution, clock, answers, link


def test_what_is_too_dear_is_skipped_counted_and_told_once_but_the_end_is_kept(tmp_path: Path) -> None:
    evolution, clock, answers, link = evolve(tmp_path, seconds=10.0)
    evolution.begin(0)
    for step in range(1, 101):
        clock.now += 1.0
        evolution.after_step(step, 2.0, is_evaluated=step % 50 == 0)
        if step % 50 == 0:
            evolution.after_evaluation(step, 2.0, is_last=step == 100)
    assert list(kept(tmp_path)) == ["step_000000", "step_000100"]
    assert answers.asked == 2
    assert [event.event for event in link.events] == ["note", "example"]
    assert "10.0 s a time" in getattr(link.events[0], "message", "")
    # Steps 10, 25 and 50.
    assert kept(tmp_path)["step_000100"]["skipped"] == 3


def test_what_is_cheap_is_kept_as_scheduled(tmp_path: Path) -> None:
    evolution, clock, _, link = evolve(tmp_path, seconds=0.1)
    evolution.begin(0)
    for step in range(1, 101):
        clock.now += 1.0
        evolution.after_step(step, 2.0, is_evaluated=False)
    assert [int(name[-6:]) for name in kept(tmp_path)] == [0, 10, 25, 50, 100]
    assert link.events == []


def test_an_oddity_is_kept_with_its_reason_and_the_next_only_later(tmp_path: Path) -> None:
    evolution, clock, _, _ = evolve(tmp_path, seconds=0.001)
    evolution.begin(1)
    for step in range(1, 2 * ANOMALY_STEPS):
        clock.now += 1.0
        evolution.after_step(step, 9.0 if step % 60 == 0 else 2.0, is_evaluated=False)
    odd = {name: one["anomaly"] for name, one in kept(tmp_path).items() if name.startswith("anomaly")}
    assert list(odd) == ["anomaly_step_000060", "anomaly_step_000600"]
    assert (odd["anomaly_step_000060"]["kind"], odd["anomaly_step_000060"]["value"]) == ("loss_rise", 9.0)
    assert all(one["anomaly"] is None for name, one in kept(tmp_path).items() if name.startswith("step"))


def test_a_run_that_goes_on_remembers_its_last_oddity_and_begins_without_answers(tmp_path: Path) -> None:
    (tmp_path / "anomaly_step_000060.json").write_text("{}")
    evolution, clock, answers, _ = evolve(tmp_path, seconds=0.001)
    evolution.begin(70)
    for step in range(71, 95):
        clock.now += 1.0
        evolution.after_step(step, 9.0 if step == 94 else 2.0, is_evaluated=False)
    assert answers.asked == 0


def test_a_command_that_waits_is_not_kept_waiting(tmp_path: Path) -> None:
    evolution, _, answers, link = evolve(tmp_path, seconds=0.001)
    evolution.begin(1)
    link.command = "pause"
    evolution.after_step(10, 2.0, is_evaluated=False)
    assert answers.asked == 0


# --- real runs of the tiny model


def run(workshop: Any, records: list[dict[str, Any]], *settings: str) -> tuple[str, Path, list[Any]]:
    """Return the version, the folder of the snapshots and the events."""
    job = workshop.job(records, *STEPS, *settings)
    outcome, events = workshop.carry_out(job)
    assert outcome.outcome == "completed", outcome
    return outcome.version, workshop.folder(job).evolution, events


def by_step(folder: Path) -> dict[int, Any]:
    """Return the examples of each snapshot but those of oddities."""
    return {one["training_step"]: one["examples"] for one in kept(folder).values() if one["anomaly"] is None}


@pytest.mark.config_key("evaluation.max_share")
def test_answers_change_no_byte_of_what_is_learned_be_they_given_left_out_or_made_up_for(
    workshop: Any, make_chats: Records
) -> None:
    records = make_chats(40)
    all_of_them, folder, events = run(workshop, records, "evaluation.sample_prompts=4")
    few = run(workshop, records, "evaluation.max_share=1e-9")
    none = run(workshop, records, "evaluation.sample_prompts=0")
    paused = workshop.job(records, *STEPS, "evaluation.sample_prompts=4")
    workshop.carry_out(paused, command="pause", at_step=10)
    resumed, _ = workshop.carry_out(paused)
    expected = learned(workshop.paths, all_of_them)
    for version in (few[0], none[0], resumed.version):
        assert learned(workshop.paths, version) == expected

    steps = [event["step"] for event in of_kind(events, "evaluated")]
    taken = by_step(folder)
    assert list(taken) == sorted({0, 10, *steps})
    assert by_step(workshop.folder(paused).evolution) == taken
    assert list(by_step(few[1])) == [0, steps[-1]]
    assert [event["step"] for event in of_kind(few[2], "example")] == [steps[-1]]
    assert "evaluation.max_share" in of_kind(few[2], "note")[0]["message"]
    assert not none[1].exists()


def test_snapshots_say_zero_before_and_one_after_what_is_easy_was_learned(workshop: Any) -> None:
    records = [
        {
            "messages": [
                {"role": "user", "content": f"{number} what colour is the rain"},
                {"role": "assistant", "content": "grey as the cat"},
            ]
        }
        for number in range(40)
    ]
    # As many prompts as are held out: then their mean loss is the held-out loss.
    _, folder, events = run(workshop, records, "train.num_train_epochs=3", "evaluation.sample_prompts=99")
    snapshots = kept(folder)
    evaluated = of_kind(events, "evaluated")
    first, last = snapshots["step_000000"], snapshots[f"step_{evaluated[-1]['step']:06d}"]
    assert set(last) >= {"snapshot_id", "training_step", "timestamp", "model_version", "examples", "summary"}
    total = last["summary"]["total_examples"]
    assert last["summary"].items() >= {"accuracy": 1.0, "correct": total, "incorrect": 0}.items()
    assert first["summary"]["accuracy"] == 0.0
    assert first["summary"]["avg_loss"] > 2 * last["summary"]["avg_loss"]
    example = last["examples"][0]
    assert (
        example.items()
        >= {
            "step": last["training_step"],
            "expected_output": "grey as the cat",
            "model_output": "grey as the cat",
            "exact_match": True,
            "similarity": 1.0,
        }.items()
    )
    assert [one["example_id"] for one in first["examples"]] == [one["example_id"] for one in last["examples"]]
    # All answers are the same, and so weigh the same: the trainer's own held-out loss, step for step.
    for event in evaluated:
        summary = snapshots[f"step_{event['step']:06d}"]["summary"]
        assert summary["avg_loss"] == pytest.approx(event["eval_loss"], rel=1e-5)
    told = of_kind(events, "example")
    assert told[-1]["loss"] == last["examples"][-1]["loss"]
    assert all(math.isfinite(event["loss"]) for event in told)


def test_files_without_conversations_have_no_answers_to_keep(workshop: Any, make_pairs: Records) -> None:
    assert not run(workshop, make_pairs(24))[1].exists()


def test_an_answer_that_was_cut_off_by_the_clock_says_so(workshop: Any, make_chats: Records) -> None:
    _, _, events = run(workshop, make_chats(24), "evaluation.max_generation_seconds=1e-9")
    # Its first token may be the one that ends it: then the answer is whole, and empty.
    for event in of_kind(events, "example"):
        assert event["error"] == ("cut off after 1e-09 s" if event["model_answer"] else None)
    assert any(event["error"] for event in of_kind(events, "example"))
