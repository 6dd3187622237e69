"""What a log of writes and flushes allows to be on a disk."""

from __future__ import annotations

import os
import random
from pathlib import Path

from tests.crash.block_log import append, legal_disks
from tests.crash.disks import BLOCK_BYTES, Disk

A, B, C = (letter * BLOCK_BYTES for letter in (b"a", b"b", b"c"))


def disks_of(tmp_path: Path, start: Disk, *records: tuple[bytes, int, bytes], subsets: int = 0) -> list[Disk]:
    descriptor = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for record in records:
        append(descriptor, *record)
    os.close(descriptor)
    return [legal.disk for legal in legal_disks(start, tmp_path / "log", random.Random(1), subsets)]


def test_what_was_flushed_is_there_and_what_was_not_may_be(tmp_path: Path) -> None:
    found = disks_of(tmp_path, {9: C}, (b"W", 0, A), (b"F", 0, b""), (b"W", BLOCK_BYTES, B), (b"F", 0, b""))
    assert found == [{9: C}, {9: C, 0: A}, {9: C, 0: A, 1: B}]


def test_any_part_of_the_unflushed_blocks_may_be_there(tmp_path: Path) -> None:
    found = disks_of(tmp_path, {}, (b"W", 0, A + B), (b"F", 0, b""), subsets=20)
    assert [disk for disk in ({}, {0: A}, {1: B}, {0: A, 1: B}) if disk not in found] == []


def test_a_write_of_less_than_a_block_keeps_the_rest_of_it(tmp_path: Path) -> None:
    found = disks_of(tmp_path, {0: A}, (b"W", 512, b"x" * 512), (b"F", 0, b""))
    assert found[-1] == {0: A[:512] + b"x" * 512 + A[1024:]}


def test_the_same_disk_is_tried_again_once_more_was_said(tmp_path: Path) -> None:
    found = disks_of(tmp_path, {0: A}, (b"M", 0, b"one"), (b"M", 0, b"two"), (b"M", 0, b"two"))
    assert found == [{0: A}, {0: A}]
