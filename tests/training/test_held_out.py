"""Records that are kept for evaluation, for ever."""

from __future__ import annotations

import os
from pathlib import Path

import orjson
import pytest

import durable
from config import Paths
from intake.formats import Record
from training.held_out import held_out_keys, keep_held_out

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
