"""What earlier files taught is kept, drawn by turns, and never what is held out by now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import DataConfig, TrainConfig
from durable import read_json
from intake.formats import Record
from tests.exactness import learned
from training.batches import StepPlan
from training.jobs import JobStore
from training.replay import Lottery, remember, replayed_rows, shares, sources
from training.versions import VersionStore

Records = Callable[..., list[dict[str, Any]]]
SETTINGS = ("train.per_device_train_batch_size=4", "train.num_train_epochs=2", "train.eval_steps=3")


def learn(workshop: Any, records: list[dict[str, Any]], *overrides: str) -> str:
    """Carry a file out and make its version current; return the job's id."""
    job = workshop.job(records, *SETTINGS, *overrides)
    outcome, _ = workshop.carry_out(job)
    VersionStore(workshop.paths).promote(outcome.version, "promoted by the test")
    return str(job)


def facts_of(workshop: Any, job: str) -> Any:
    version = VersionStore(workshop.paths).version_of_job(job)
    assert version is not None
    return version.facts


def contents(path: Path) -> list[bytes]:
    return [Record.from_json(orjson.loads(line)).key() for line in path.read_bytes().splitlines()]


@given(st.integers(0, 300), st.dictionaries(st.text(max_size=3), st.integers(0, 60), max_size=8))
def test_shares_are_as_even_as_what_there_is_allows(wanted: int, available: dict[str, int]) -> None:
    given_ = shares(wanted, available)
    assert sum(given_.values()) == min(wanted, sum(available.values()))
    assert all(0 < count <= available[source] for source, count in given_.items())
    largest = max(given_.values(), default=0)
    for source, most in available.items():
        assert given_.get(source, 0) in (most, largest, largest - 1)


@pytest.mark.parametrize(("own", "ratio", "expected"), [(70, 0.3, 30), (100, 0.5, 100), (100, 0.0, 0)])
def test_the_ratio_is_the_share_of_all_rows(own: int, ratio: float, expected: int) -> None:
    assert replayed_rows(own, ratio) == expected


@pytest.mark.config_key("train.replay_memory_records")
def test_so_many_records_of_a_file_are_kept_even_when_its_run_is_removed(
    workshop: Any, make_chats: Records
) -> None:
    job = learn(workshop, make_chats(40))
    lines = (workshop.paths.replay / f"{job}.jsonl").read_bytes().splitlines()
    assert orjson.loads(lines[0])["records"] == len(lines) - 1
    assert contents(workshop.folder(job).train_records) == [
        Record.from_json(orjson.loads(line)).key() for line in lines[1:]
    ]
    few = learn(workshop, make_chats(40, seed=1), "train.replay_memory_records=7")
    assert len((workshop.paths.replay / f"{few}.jsonl").read_bytes().splitlines()) == 8
    none = learn(workshop, make_chats(40, seed=2), "train.replay_memory_records=0")
    assert not (workshop.paths.replay / f"{none}.jsonl").exists()


def test_what_is_kept_is_written_once(workshop: Any, make_chats: Records) -> None:
    job_id = learn(workshop, make_chats(30))
    job = JobStore(workshop.paths).get(job_id)
    assert job is not None
    kept = workshop.paths.replay / f"{job_id}.jsonl"
    before = kept.stat().st_mtime_ns
    remember(workshop.paths, job, TrainConfig(replay_memory_records=3))
    assert kept.stat().st_mtime_ns == before


@pytest.mark.config_key("train.replay_ratio")
def test_a_later_run_trains_some_of_each_earlier_file_and_counts_them_apart(
    workshop: Any, make_chats: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (learn(workshop, make_chats(40, seed=seed)) for seed in (1, 2))
    steps: list[list[int]] = []
    iterate = StepPlan.__iter__

    def noting(plan: StepPlan) -> Any:
        for step in iterate(plan):
            steps.append(step)
            yield step

    monkeypatch.setattr(StepPlan, "__iter__", noting)
    job = workshop.job(make_chats(40, seed=3), *SETTINGS, "train.replay_ratio=0.5")
    outcome, events = workshop.carry_out(job)
    facts = facts_of(workshop, job)
    own = facts.records.train
    assert sum(facts.records.replayed.values()) == own
    assert set(facts.records.replayed) == {first, second}
    assert max(facts.records.replayed.values()) - min(facts.records.replayed.values()) <= 1
    plan = next(event for event in events if event["event"] == "plan")
    assert (plan["records"], plan["replayed"]) == (own, facts.records.replayed)
    report = read_json(workshop.folder(job).report)
    assert report["plan"]["replayed"] == facts.records.replayed
    assert report["plan"]["total_steps"] == plan["total_steps"] == outcome.step
    counts = Counter(number for step in steps for number in step)
    assert {counts[number] for number in range(own)} == {2}
    assert sum(counts.values()) == 2 * 2 * own
    held_out = {key for file in workshop.paths.held_out.glob("*.jsonl") for key in contents(file)}
    replayed = contents(workshop.folder(job).replay_records)
    assert replayed
    assert held_out.isdisjoint(replayed)
    assert "trained again" not in (workshop.folder(first).report_text.read_text(encoding="utf-8"))


def test_without_a_ratio_nothing_is_replayed(workshop: Any, make_chats: Records) -> None:
    learn(workshop, make_chats(40, seed=1))
    job = learn(workshop, make_chats(40, seed=2), "train.replay_ratio=0")
    assert facts_of(workshop, job).records.replayed == {}


def test_a_run_with_replay_that_was_interrupted_ends_in_the_same_bytes(
    workshop: Any, make_chats: Records
) -> None:
    learn(workshop, make_chats(40, seed=1))
    undisturbed, _ = workshop.carry_out(workshop.job(make_chats(40, seed=2), *SETTINGS))
    job = workshop.job(make_chats(40, seed=2), *SETTINGS)
    paused, _ = workshop.carry_out(job, command="pause", at_step=5)
    assert paused.step == 5
    resumed, _ = workshop.carry_out(job)
    assert facts_of(workshop, job).records.replayed
    assert learned(workshop.paths, resumed.version) == learned(workshop.paths, undisturbed.version)


def test_pairs_are_replayed_among_pairs_only(workshop: Any, make_chats: Records, make_pairs: Records) -> None:
    learn(workshop, make_chats(30, seed=1))
    pairs = learn(workshop, make_pairs(30, seed=2))
    assert facts_of(workshop, pairs).records.replayed == {}
    later = learn(workshop, make_pairs(30, seed=3))
    assert set(facts_of(workshop, later).records.replayed) == {pairs}


def test_only_what_the_lineage_of_the_parent_has_learned_is_replayed(
    workshop: Any, make_chats: Records
) -> None:
    store = VersionStore(workshop.paths)
    first = learn(workshop, make_chats(30, seed=1))
    learn(workshop, make_chats(30, seed=2))
    store.rollback("v0001")
    assert [source.job_id for source in sources(workshop.paths, store, store.get("v0001"), "answers")] == [
        first
    ]
    third = learn(workshop, make_chats(30, seed=3))
    assert set(facts_of(workshop, third).records.replayed) == {first}


def test_what_was_held_out_since_is_not_replayed(workshop: Any, make_chats: Records) -> None:
    job = learn(workshop, make_chats(30, seed=1))
    store = VersionStore(workshop.paths)
    kept = (workshop.paths.replay / f"{job}.jsonl").read_bytes().splitlines()[1:]
    barred = [orjson.loads(line) for line in kept[:5]]
    for record in barred:
        record["messages"][0]["content"] = record["messages"][0]["content"].upper() + " !"
    later = workshop.paths.held_out / "000009-bbbbbbbb.jsonl"
    later.write_bytes(b"".join(orjson.dumps(record) + b"\n" for record in barred))
    fresh = workshop.job(make_chats(30, seed=2))
    lottery = Lottery(workshop.paths, fresh, TrainConfig(replay_ratio=0.5), "v0001")
    drawn = lottery.draw(100, sources(workshop.paths, store, store.get("v0001"), "answers"), DataConfig())
    assert drawn.withheld >= 5
    replayed = set(contents(workshop.folder(fresh).replay_records))
    assert len(replayed) == drawn.records[job] == len(kept) - drawn.withheld
    assert replayed.isdisjoint(Record.from_json(orjson.loads(line)).key() for line in kept[:5])


def test_a_draw_stands_until_the_run_begins_with_another_version(workshop: Any, make_chats: Records) -> None:
    job = learn(workshop, make_chats(30, seed=1))
    store = VersionStore(workshop.paths)
    found = sources(workshop.paths, store, store.get("v0001"), "answers")
    fresh = workshop.job(make_chats(30, seed=2))
    config = TrainConfig(replay_ratio=0.3)
    drawn = [
        Lottery(workshop.paths, fresh, config, parent).draw(20, some, DataConfig())
        for parent, some in (("v0001", found), ("v0001", []), ("v0007", []))
    ]
    assert [one.records for one in drawn] == [{job: 9}, {job: 9}, {}]
