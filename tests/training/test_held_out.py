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


def test_what_can_be_asked_are_answers_in_words(tmp_path: Path) -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add"}}]}
    records = [
        talk(1, "4"),
        talk(2, "5", tools=[{"name": "add"}]),
        Record(3, "text", text="once"),
        Record(4, "chat", [{"role": "user", "content": "2+2?"}, call]),
        Record(5, "chat", [*talk(5, "6").messages, {"role": "user", "content": "thanks"}]),
    ]
    (item,) = held_out_items(write(tmp_path / "held_out.jsonl", *records))
    assert (item.item_id, item.expected) == (records[0].key().hex(), "4")
    assert item.messages == [{"role": "user", "content": "question 1"}]
    assert held_out_items(tmp_path / "nothing.jsonl") == []


def test_records_are_judged_as_they_say_and_the_rest_as_suits_their_answers(tmp_path: Path) -> None:
    own = {"name": "number", "tolerance": 0.5}
    file = write(tmp_path / "held_out.jsonl", talk(1, "refund"), talk(2, "4", grader=own), talk(3, "other"))
    graders = [item.grader for item in held_out_items(file)]
    assert graders == [GraderSpec(), GraderSpec(name="number", tolerance=0.5), GraderSpec()]
    assert chosen_grader(file) == (GraderSpec(), "no expected answer is longer than 1 word")
