"""Copies are compared byte by byte, deleting moves aside, restoring brings back the very same version."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import filelock
import pytest

import durable
from config import BackupConfig
from errors import EnvironmentNotReady, IntegrityError, UsageError
from training.backups import Backups, housekeeping
from training.versions import VersionStore


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "second disk"
    root.mkdir()
    return root


def backups_of(shelf: Any, root: Path | str = "") -> Backups:
    return Backups(shelf.paths, shelf.store, BackupConfig(root=str(root)))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def damage_found(backups: Backups, *references: str) -> list[str]:
    return [sentence for examined in backups.examine(references) for sentence in examined.damage]


@pytest.mark.config_key("backup.root")
def test_a_backup_is_the_same_bytes_in_the_configured_root(shelf: Any, root: Path) -> None:
    version = shelf.store.get("v0002")
    copy = backups_of(shelf, root).back_up(version)
    assert copy == root / "v0002"
    assert contents(copy) == contents(version.folder)
    assert backups_of(shelf).back_up(version) == shelf.paths.backups / "v0002"


def test_a_relative_root_lies_below_the_base_folder(shelf: Any) -> None:
    (shelf.paths.base / "other").mkdir()
    assert backups_of(shelf, "other").back_up(shelf.store.get(1)) == shelf.paths.base / "other" / "v0001"


def test_a_root_that_is_not_mounted_is_waited_for_and_never_made(shelf: Any, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentNotReady, match="mount its disk"):
        backups_of(shelf, tmp_path / "away").back_up(shelf.store.get(1))
    assert not (tmp_path / "away").exists()


def test_a_damaged_version_is_not_backed_up_and_the_file_is_named(
    shelf: Any, root: Path, flip_byte: Any
) -> None:
    flip_byte(shelf.store.get(1).folder / "training_state" / "optimizer.pt")
    with pytest.raises(IntegrityError, match=r"optimizer\.pt"):
        backups_of(shelf, root).back_up(shelf.store.get(1))
    assert list(root.iterdir()) == []


def test_a_damaged_copy_is_replaced(shelf: Any, root: Path, flip_byte: Any) -> None:
    backups = backups_of(shelf, root)
    copy = backups.back_up(shelf.store.get(1))
    flip_byte(copy / "adapter_model.safetensors")
    backups.back_up(shelf.store.get(1))
    assert contents(copy) == contents(shelf.store.get(1).folder)


def test_the_copy_of_another_base_folder_is_not_overwritten(shelf: Any, root: Path, tmp_path: Path) -> None:
    other = type(shelf)(type(shelf.paths)(tmp_path / "other"))
    stranger = backups_of(other, root).back_up(other.add(tokens=1))
    before = contents(stranger)
    with pytest.raises(UsageError, match=r"a backup\.root of its own"):
        backups_of(shelf, root).back_up(shelf.store.get(1))
    assert contents(stranger) == before


def test_one_flipped_byte_in_any_file_of_any_version_or_copy_is_found_and_named(
    shelf: Any, root: Path, flip_byte: Any
) -> None:
    backups = backups_of(shelf, root)
    backups.back_up(shelf.store.get(1))
    backups_of(shelf).back_up(shelf.store.get(2))
    assert damage_found(backups) == []
    examined = [each.folder for each in backups.examine()]
    assert {root / "v0001", shelf.paths.backups / "v0002", shelf.paths.versions / "v0006"} < set(examined)
    for folder in (root / "v0001", shelf.paths.backups / "v0002", shelf.paths.versions / "v0003"):
        for path in (path for path in folder.rglob("*") if path.is_file()):
            sound = path.read_bytes()
            flip_byte(path, len(sound) // 2)
            assert str(path) in " ".join(damage_found(backups)), path
            path.write_bytes(sound)
    assert damage_found(backups) == []


def test_a_single_version_is_examined_with_its_copies_only(shelf: Any, root: Path, flip_byte: Any) -> None:
    backups = backups_of(shelf, root)
    backups.back_up(shelf.store.get(2))
    flip_byte(shelf.paths.versions / "v0001" / "adapter_model.safetensors")
    assert [each.folder for each in backups.examine(["2"])] == [
        shelf.paths.versions / "v0002",
        root / "v0002",
    ]
    assert damage_found(backups, "v0002") == []
    with pytest.raises(UsageError, match="v0001, v0002"):
        damage_found(backups, "v0099")


def test_deleting_moves_a_version_aside_and_restoring_brings_it_back(shelf: Any) -> None:
    before = contents(shelf.store.get(2).folder)
    backups = backups_of(shelf)
    aside = backups.delete("v0002")
    assert aside == shelf.paths.backups / "v0002"
    assert contents(aside) == before
    assert "v0002" not in [version.name for version in shelf.store.list()]
    assert backups.restore("2") == shelf.store.get("v0002")
    assert contents(shelf.paths.versions / "v0002") == before


@pytest.mark.parametrize("name", ["v0006", "v0005", "v0001"])
def test_deleting_a_version_that_is_needed_is_refused_and_changes_nothing(shelf: Any, name: str) -> None:
    before = contents(shelf.paths.models)
    with pytest.raises(UsageError, match="not deleted: "):
        backups_of(shelf).delete(name)
    assert contents(shelf.paths.models) == before


def test_a_damaged_version_is_not_moved_aside(shelf: Any, flip_byte: Any) -> None:
    flip_byte(shelf.store.get(2).folder / "adapter_model.safetensors")
    with pytest.raises(IntegrityError, match=r"adapter_model\.safetensors"):
        backups_of(shelf).delete("v0002")
    assert shelf.store.get(2).folder.is_dir()


def test_a_deleted_version_on_another_file_system_is_copied_verified_then_removed(
    shelf: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(shelf.store.get(2).folder)
    plain = durable.rename_new

    def across_disks(source: Path, destination: Path) -> None:
        if source.parent == shelf.paths.versions and not source.name.startswith("."):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        plain(source, destination)

    monkeypatch.setattr(durable, "rename_new", across_disks)
    assert contents(backups_of(shelf).delete("v0002")) == before
    assert not (shelf.paths.versions / "v0002").exists()


def test_a_lost_version_is_restored_from_the_second_root(shelf: Any, root: Path) -> None:
    backups = backups_of(shelf, root)
    backups.back_up(shelf.store.get(2))
    before = contents(shelf.paths.versions / "v0002")
    durable.remove_tree(shelf.paths.versions / "v0002")
    backups.restore("v0002")
    assert contents(shelf.paths.versions / "v0002") == before
    assert (root / "v0002").is_dir()


def test_a_damaged_version_is_replaced_by_a_sound_copy(shelf: Any, root: Path, flip_byte: Any) -> None:
    backups = backups_of(shelf, root)
    backups.back_up(shelf.store.get("current"))
    before = contents(shelf.paths.versions / "v0006")
    flip_byte(shelf.paths.versions / "v0006" / "adapter_model.safetensors")
    backups.restore("v0006")
    assert contents(shelf.paths.versions / "v0006") == before
    assert [path.name for path in shelf.paths.versions.glob(".*")] == []


def test_a_damaged_copy_is_never_restored(shelf: Any, flip_byte: Any) -> None:
    backups = backups_of(shelf)
    aside = backups.delete("v0002")
    flip_byte(aside / "adapter_model.safetensors")
    with pytest.raises(UsageError, match=r"adapter_model\.safetensors: its bytes differ"):
        backups.restore("v0002")
    with pytest.raises(UsageError, match="no sound copy of it was found: none in"):
        backups.restore("v0077")
    assert not (shelf.paths.versions / "v0002").exists()


def test_a_copy_that_was_cut_short_is_cleared_away_and_made_again(shelf: Any, root: Path) -> None:
    torn = root / ".v0001.partial"
    torn.mkdir()
    (torn / "adapter_model.safetensors").write_bytes(b"half")
    shelf.paths.backups.mkdir()
    (shelf.paths.backups / ".v0002.partial").mkdir()
    (shelf.paths.versions / ".restored-v0002.partial").mkdir()
    with housekeeping(shelf.paths):
        backups_of(shelf, root).back_up(shelf.store.get(1))
    assert durable.is_sealed(root / "v0001")
    for place in (root, shelf.paths.backups, shelf.paths.versions):
        assert list(place.glob(".*")) == []


def test_only_one_process_keeps_house(shelf: Any) -> None:
    held = filelock.FileLock(shelf.paths.housekeeping_lock, thread_local=False, is_singleton=False)
    with held, pytest.raises(EnvironmentNotReady, match="try again when it is done"):
        _keep_house(shelf)


def _keep_house(shelf: Any) -> None:
    with housekeeping(shelf.paths, 0.1):
        raise AssertionError("two at once")


def test_names_of_deleted_versions_are_not_given_again(shelf: Any) -> None:
    backups_of(shelf).delete("v0002")
    assert VersionStore(shelf.paths).next_name() == "v0007"
