"""The doctor names what is missing and how to mend it."""

from __future__ import annotations

from pathlib import Path

import pytest

import doctor
from doctor import Finding


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base folder in which there is nothing."""
    return tmp_path_factory.mktemp("empty")


@pytest.fixture(scope="module")
def of_empty(empty: Path) -> dict[str, Finding]:
    """What is found there."""
    return findings(empty)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not import torch once more where it is not what the test is about."""
    monkeypatch.setattr(doctor, "_TORCH_PROBE", "print('2.13.0 False')")


def findings(base: Path) -> dict[str, Finding]:
    return {finding.name: finding for finding in doctor.examine(base)}


def test_everything_trainbox_needs_is_looked_at(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "config.yaml").write_text(f"model:\n  base: {tiny_model}\n")
    found = findings(tmp_path)
    assert set(found) == {"Python", "torch", "GPU", "memory", "disk", "permissions", "config", "model"}
    assert found["Python"].level == found["torch"].level == found["config"].level == "ok"
    assert found["model"] == Finding("model", "ok", str(tiny_model))


def test_a_missing_model_comes_with_its_remedy(of_empty: dict[str, Finding]) -> None:
    model = of_empty["model"]
    assert model.level == "problem"
    assert "trainbox prepare" in model.remedy


@pytest.mark.usefixtures("quick")
def test_a_wrong_key_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("trian:\n  seed: 1\n")
    config = findings(tmp_path)["config"]
    assert config.level == "problem"
    assert "trian" in config.found


@pytest.mark.usefixtures("quick")
def test_a_full_disk_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "MIN_FREE_BYTES", 2**70)
    assert findings(tmp_path)["disk"].level == "warning"


def test_everything_that_is_not_well_has_a_remedy(of_empty: dict[str, Finding]) -> None:
    assert [found for found in of_empty.values() if found.level != "ok" and not found.remedy] == []


def test_looking_changes_nothing(empty: Path, of_empty: dict[str, Finding]) -> None:
    assert of_empty
    assert list(empty.iterdir()) == []
