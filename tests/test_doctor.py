"""The doctor names what is missing and how to mend it."""

from __future__ import annotations

from pathlib import Path

import pytest

import doctor
from doctor import Finding


def findings(base: Path) -> dict[str, Finding]:
    return {finding.name: finding for finding in doctor.examine(base)}


def test_everything_trainbox_needs_is_looked_at(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "config.yaml").write_text(f"model:\n  base: {tiny_model}\n")
    found = findings(tmp_path)
    assert set(found) == {"Python", "torch", "GPU", "memory", "disk", "permissions", "config", "model"}
    assert found["Python"].level == found["torch"].level == found["config"].level == "ok"
    assert found["model"] == Finding("model", "ok", str(tiny_model))


def test_a_missing_model_comes_with_its_remedy(tmp_path: Path) -> None:
    model = findings(tmp_path)["model"]
    assert model.level == "problem"
    assert "trainbox prepare" in model.remedy


def test_a_wrong_key_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("trian:\n  seed: 1\n")
    config = next(finding for finding in doctor.examine(tmp_path) if finding.name == "config")
    assert config.level == "problem"
    assert "trian" in config.found


def test_a_full_disk_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "MIN_FREE_BYTES", 2**70)
    assert findings(tmp_path)["disk"].level == "warning"


def test_everything_that_is_not_well_has_a_remedy(tmp_path: Path) -> None:
    assert [
        finding for finding in doctor.examine(tmp_path) if finding.level != "ok" and not finding.remedy
    ] == []


def test_looking_changes_nothing(tmp_path: Path) -> None:
    list(doctor.examine(tmp_path))
    assert list(tmp_path.iterdir()) == []
