"""Records that are kept for evaluation, for ever."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import orjson
import pytest

import durable
from config import Paths
from evaluation.graders import GraderSpec
from evaluation.items import Item, Passage
from intake.formats import Record
from training.held_out import chosen_grader, held_out_items, held_out_keys, keep_held_out

JOBS = ("000001-aaaaaaaa", "000002-bbbbbbbb")


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    paths = Paths(tmp_path)
    paths.create()
    return paths


def hold_out(paths: Paths, job_id: str, *texts: str) -> list[Record]:
    records = [Record(line=line, kind="text", text=text) for line, text in enumerate(texts, 1)]
    run = paths.run(job_id)
    run.data.mkdir(parents=True, exist_ok=True)
    run.held_out_records.write_bytes(b"".join(orjson.dumps(one.to_json()) + b"\n" for one in records))
    return records


def test_keys_of_all_files_are_known(paths: Paths) -> None:
    assert held_out_keys(paths) == frozenset()
    records = hold_out(paths, JOBS[0], "one", "two") + hold_out(paths, JOBS[1], "three")
    for job_id in JOBS:
        keep_held_out(paths, job_id)
    assert held_out_keys(paths) == {record.key() for record in records}


def test_what_is_kept_outlives_its_run_and_is_never_changed(paths: Paths) -> None:
    hold_out(paths, JOBS[0], "one")
    keep_held_out(paths, JOBS[0])
    hold_out(paths, JOBS[0], "other", "records")
    keep_held_out(paths, JOBS[0])
    assert len(held_out_keys(paths)) == 1


def test_a_copy_that_was_cut_short_is_made_again(paths: Paths) -> None:
    hold_out(paths, JOBS[0], "one")
    durable.partial_name(paths.held_out / f"{JOBS[0]}.jsonl").write_bytes(b'{"li')
    assert held_out_keys(paths) == frozenset()
    keep_held_out(paths, JOBS[0])
    assert len(held_out_keys(paths)) == 1
    assert os.listdir(paths.held_out) == [f"{JOBS[0]}.jsonl"]


def test_a_run_that_holds_nothing_out_keeps_nothing(paths: Paths) -> None:
    keep_held_out(paths, JOBS[0])
    assert os.listdir(paths.held_out) == []


def write(path: Path, *records: Record) -> Path:
    path.write_bytes(b"".join(orjson.dumps(record.to_json()) + b"\n" for record in records))
    return path


def talk(line: int, answer: str, **fields: Any) -> Record:
    turns = [{"role": "user", "content": f"question {line}"}, {"role": "assistant", "content": answer}]
    return Record(line, "chat", turns, **fields)


def test_what_ends_with_an_answer_in_words_can_be_asked_and_the_rest_is_passages(tmp_path: Path) -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add"}}]}
    asked = {"role": "user", "content": "which?"}
    better, worse = ({"role": "assistant", "content": answer} for answer in ("this", "that"))
    records = [
        talk(1, "4"),
        talk(2, "5", tools=[{"name": "add"}]),
        Record(3, "text", text="once"),
        Record(4, "chat", [{"role": "user", "content": "2+2?"}, call]),
        Record(5, "chat", [*talk(5, "6").messages, {"role": "user", "content": "thanks"}]),
        Record(6, "preference", prompt=[asked], chosen=[better], rejected=[worse]),
    ]
    item, tools, text, calls, thanks, pair = held_out_items(write(tmp_path / "held_out.jsonl", *records))
    assert isinstance(item, Item)
    assert (item.item_id, item.expected) == (records[0].key().hex(), "4")
    assert item.messages == [{"role": "user", "content": "question 1"}]
    assert tools == Passage(records[1].key().hex(), turns=records[1].messages, tools=[{"name": "add"}])
    assert text == Passage(records[2].key().hex(), text="once")
    assert calls == Passage(records[3].key().hex(), turns=records[3].messages)
    assert thanks == Passage(records[4].key().hex(), turns=records[4].messages)
    assert pair == Passage(records[5].key().hex(), given=[asked], turns=[better], rejected=[worse])
    assert held_out_items(tmp_path / "nothing.jsonl") == []


def test_records_are_judged_as_they_say_and_the_rest_as_suits_their_answers(tmp_path: Path) -> None:
    own = {"name": "number", "tolerance": 0.5}
    file = write(tmp_path / "held_out.jsonl", talk(1, "refund"), talk(2, "4", grader=own), talk(3, "other"))
    graders = [item.grader for item in held_out_items(file) if isinstance(item, Item)]
    assert graders == [GraderSpec(), GraderSpec(name="number", tolerance=0.5), GraderSpec()]
    assert chosen_grader(file) == (GraderSpec(), "no expected answer is longer than 1 word")
