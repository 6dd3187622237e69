"""A disk read from an image and written to another is the same."""

from __future__ import annotations

from pathlib import Path

from tests.crash.disks import BLOCK_BYTES, read_disk, read_still_disk, write_disk

SIZE_BYTES = 64 * BLOCK_BYTES
DISK = {0: b"a" * BLOCK_BYTES, 17: b"b" * BLOCK_BYTES, 63: b"c" * BLOCK_BYTES}


def test_a_disk_comes_back_block_by_block_and_stays_sparse(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    write_disk(DISK, image, SIZE_BYTES)
    assert read_disk(image) == DISK
    assert image.stat().st_size == SIZE_BYTES
    assert image.stat().st_blocks * 512 < SIZE_BYTES


def test_blocks_that_did_not_change_are_kept_once(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    write_disk(DISK, image, SIZE_BYTES)
    before = read_disk(image)
    assert all(block is before[number] for number, block in read_still_disk(image, before).items())
