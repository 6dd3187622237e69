"""Files that matter change whole or not at all, and damage is found."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import durable
from errors import IntegrityError


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (folder / "a.bin").write_bytes(b"alpha")
    (folder / "inner" / "b.bin").write_bytes(b"beta")
    durable.seal_folder(folder, {"job_id": "000001-aaaaaaaa"})
    return folder


def test_a_reader_never_sees_half_a_write(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    documents = [b"a" * 200_000, b"b" * 100_000]
    durable.write_bytes(path, documents[0])
    torn: list[bytes] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            data = path.read_bytes()
            if data not in documents:
                torn.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(200):
        durable.write_bytes(path, documents[turn % 2], sync=False)
    done.set()
    reader.join()
    assert torn == []
    assert os.listdir(tmp_path) == ["status.json"]


@pytest.mark.parametrize("sync", [True, False])
def test_bytes_are_on_the_disk_before_they_get_their_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync: bool
) -> None:
    path = tmp_path / "status.json"
    named_at_fsync: list[bool] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: named_at_fsync.append(path.exists()))
    durable.write_bytes(path, b"{}", sync=sync)
    assert named_at_fsync[0] is False


def test_a_write_that_fails_leaves_no_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(IsADirectoryError):
        durable.write_bytes(tmp_path / "taken", b"data")
    assert os.listdir(tmp_path) == ["taken"]


def test_copying_once_makes_a_whole_file_or_none_and_leaves_what_is_there(tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(b"data")
    durable.copy_once(source, copy)
    source.write_bytes(b"later")
    durable.copy_once(source, copy)
    assert copy.read_bytes() == b"data"
    with pytest.raises(IsADirectoryError):
        durable.copy_once(tmp_path, tmp_path / "copy of a folder")
    assert sorted(os.listdir(tmp_path)) == ["copy", "source"]


def test_json_never_holds_a_number_that_is_not_finite(tmp_path: Path) -> None:
    durable.write_json(tmp_path / "x.json", {"loss": float("nan"), "grad": float("inf"), "ok": 1.5})
    assert durable.read_json(tmp_path / "x.json") == {"loss": None, "grad": None, "ok": 1.5}


def test_damaged_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b'{"a":')
    with pytest.raises(IntegrityError, match=r"x\.json: not valid JSON"):
        durable.read_json(tmp_path / "x.json")


def test_a_sealed_folder_verifies_and_carries_its_facts(sealed: Path) -> None:
    manifest = durable.verify_folder(sealed)
    assert manifest["job_id"] == "000001-aaaaaaaa"
    assert set(manifest["files"]) == {"a.bin", "inner/b.bin"}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "inner" / "b.bin").write_bytes(b"beto"), "b.bin: its bytes differ"),
        (lambda folder: (folder / "a.bin").write_bytes(b"alphabet"), "a.bin: its bytes differ"),
        (lambda folder: (folder / "a.bin").unlink(), "a.bin: missing"),
        (lambda folder: (folder / "manifest.json").unlink(), "never completed"),
        (lambda folder: (folder / "manifest.json").write_bytes(b"{"), "not valid JSON"),
        (lambda folder: (folder / "manifest.json").write_bytes(b"[]"), "not a manifest"),
    ],
)
def test_damage_to_a_sealed_folder_is_found_and_named(sealed: Path, damage: object, message: str) -> None:
    assert callable(damage)
    damage(sealed)
    with pytest.raises(IntegrityError, match=message):
        durable.verify_folder(sealed)
    assert not durable.is_sealed(sealed)


def test_a_folder_without_a_manifest_cannot_be_published(tmp_path: Path) -> None:
    (tmp_path / "staging").mkdir()
    with pytest.raises(IntegrityError):
        durable.publish_folder(tmp_path / "staging", tmp_path / "v0001")
    assert not (tmp_path / "v0001").exists()


def test_publishing_never_replaces(sealed: Path, tmp_path: Path) -> None:
    (tmp_path / "v0001").mkdir()
    with pytest.raises(FileExistsError):
        durable.publish_folder(sealed, tmp_path / "v0001")
    assert durable.is_sealed(sealed)


def test_moving_keeps_what_lies_at_the_destination(tmp_path: Path) -> None:
    (tmp_path / "done").mkdir()
    source, destination = tmp_path / "a", tmp_path / "done" / "a"
    source.write_bytes(b"new")
    destination.write_bytes(b"old")
    with pytest.raises(FileExistsError):
        durable.move_file(source, destination)
    assert (source.read_bytes(), destination.read_bytes()) == (b"new", b"old")


def test_a_file_under_both_names_loses_the_older(tmp_path: Path) -> None:
    (tmp_path / "done").mkdir()
    source, destination = tmp_path / "a", tmp_path / "done" / "a"
    source.write_bytes(b"data")
    os.link(source, destination)
    durable.move_file(source, destination)
    assert not source.exists()
    assert destination.read_bytes() == b"data"


def test_copying_returns_the_hash_of_what_was_copied(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(3 * durable.COPY_CHUNK_BYTES + 17))
    with open(source, "rb") as file:
        sha256, size = durable.copy_hashed(file.fileno(), tmp_path / "copy")
    assert sha256 == durable.sha256_file(source) == durable.sha256_file(tmp_path / "copy")
    assert size == source.stat().st_size


def test_a_link_always_points_somewhere_while_it_is_moved(tmp_path: Path) -> None:
    link = tmp_path / "current"
    durable.point_symlink(link, "v0")
    misses: list[str] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            try:
                os.readlink(link)
            except FileNotFoundError as error:
                misses.append(str(error))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(500):
        durable.point_symlink(link, f"v{number}")
    done.set()
    reader.join()
    assert misses == []
    assert os.readlink(link) == "v499"


def test_removing_a_tree_leaves_what_its_links_point_to(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"x")
    doomed = tmp_path / "doomed"
    doomed.mkdir()
    (doomed / "link").symlink_to(tmp_path / "precious")
    durable.remove_tree(doomed)
    assert os.listdir(tmp_path) == ["precious"]


def test_removing_a_tree_spares_a_staging_folder_of_its_name(tmp_path: Path) -> None:
    for name in ("v0001", ".v0001.partial"):
        (tmp_path / name).mkdir()
    durable.remove_tree(tmp_path / "v0001")
    assert os.listdir(tmp_path) == [".v0001.partial"]
    durable.remove_tree(tmp_path / ".v0001.partial")
    assert os.listdir(tmp_path) == []


@given(st.lists(st.binary(max_size=200).filter(lambda line: b"\n" not in line), max_size=20))
def test_appended_lines_read_back(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("log") / "log"
    for line in lines:
        durable.append_line(path, line)
    expected = b"".join(line + b"\n" for line in lines)
    assert (path.read_bytes() if path.exists() else b"") == expected
