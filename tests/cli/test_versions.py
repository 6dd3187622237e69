"""`trainbox versions …` as a person types it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from config import Paths
from tests.training.conftest import Shelf, flip

ROOT = Path(__file__).parent.parent.parent
Trainbox = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def four_versions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base folder with four versions, of which the first was held."""
    shelf = Shelf(Paths(tmp_path_factory.mktemp("versions") / "base"))
    shelf.add(decision="hold")
    for _ in range(2):
        shelf.add()
    shelf.store.promote(shelf.add(), "better")
    return shelf.paths.base


@pytest.fixture
def base(four_versions: Path, tmp_path: Path) -> Path:
    shutil.copytree(four_versions, tmp_path / "base", symlinks=True)
    return tmp_path / "base"


@pytest.fixture
def trainbox(base: Path) -> Trainbox:
    """Run one `trainbox versions` command on the base folder."""

    def run(command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "cli", "versions", command, *arguments, "--base", str(base)]
        environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
        return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    return run


def test_verify_names_the_damaged_file_of_any_version_and_exits_with_1(
    base: Path, trainbox: Trainbox
) -> None:
    sound = trainbox("verify", "--all")
    assert (sound.returncode, sound.stdout.count("ok ")) == (0, 4)
    damaged = base / "models" / "versions" / "v0002" / "training_state" / "optimizer.pt"
    flip(damaged)
    found = trainbox("verify")
    assert (found.returncode, str(damaged) in found.stdout) == (1, True)
    assert trainbox("verify", "v0003").returncode == 0
    assert trainbox("verify", "v0003", "--all").returncode == 2


def test_delete_says_which_rule_refused_and_restore_undoes_a_deletion(base: Path, trainbox: Trainbox) -> None:
    refused = trainbox("delete", "v0004")
    assert (refused.returncode, "v0004 is current" in refused.stderr) == (2, True)
    assert "trainbox rollback" in refused.stderr
    deleted = trainbox("delete", "v0001")
    assert (deleted.returncode, "trainbox versions restore v0001" in deleted.stdout) == (0, True)
    assert not (base / "models" / "versions" / "v0001").exists()
    assert trainbox("restore", "v0001").returncode == 0
    assert (base / "models" / "versions" / "v0001").is_dir()


def test_backup_copies_every_version_and_says_where(base: Path, trainbox: Trainbox, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    copied = trainbox("backup", "--set", f"backup.root={tmp_path / 'disk'}")
    assert (copied.returncode, copied.stdout.count("has a verified copy")) == (0, 4)
    assert len(list((tmp_path / "disk").iterdir())) == 4
    assert "same disk" in trainbox("backup", "v0001").stdout
    assert trainbox("backup", "--set", f"backup.root={tmp_path / 'away'}").returncode == 1


def test_prune_shows_first_and_removes_with_yes(base: Path, trainbox: Trainbox) -> None:
    tight = ("--set", "retention.max_bytes=1000")
    shown = trainbox("prune", *tight)
    assert (shown.returncode, "Would remove models/versions/v0001" in shown.stdout) == (0, True)
    assert (base / "models" / "versions" / "v0001").is_dir()
    done = trainbox("prune", "--yes", *tight)
    assert "Removed models/versions/v0001" in done.stdout
    assert "still needed" in done.stdout
    assert not (base / "models" / "versions" / "v0001").exists()


def test_rollback_is_a_command_of_the_group_too(base: Path, trainbox: Trainbox) -> None:
    assert trainbox("rollback", "v0003").returncode == 0
    assert os.readlink(base / "models" / "current") == "versions/v0003"
