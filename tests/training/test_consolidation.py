"""Consolidation: nothing learned is lost, at whatever moment it is killed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from config import Config, load_config
from training.consolidation import Consolidation
from training.versions import Version, VersionStore

Records = Callable[..., list[dict[str, Any]]]


def config_of(workshop: Any, *overrides: str) -> Config:
    settings = (f"model.base={workshop.model}", "model.precision=float32", "train.threads=1", *overrides)
    return load_config(workshop.paths.base, settings)


def trained(workshop: Any, records: list[dict[str, Any]], *settings: str) -> Version:
    """Train a file and make what comes of it current."""
    outcome, _ = workshop.carry_out(workshop.job(records, "train.num_train_epochs=4", *settings))
    assert outcome.outcome == "completed", outcome
    return VersionStore(workshop.paths).promote(outcome.version, "promoted by the test")


def test_the_next_file_continues_from_the_merged_base_with_all_that_was_learned(
    workshop: Any, make_chats: Records
) -> None:
    records = make_chats(48)
    first = trained(workshop, records)
    merged = Consolidation(workshop.paths, config_of(workshop, "train.lora_r=4")).carry_out()
    assert (merged.name, merged.facts.parent, merged.facts.kind) == ("v0002", "v0001", "consolidation")
    assert VersionStore(workshop.paths).current() == merged
    second = trained(workshop, records)
    assert (second.facts.parent, second.facts.consolidated) == ("v0002", "v0001")
    assert second.facts.base_sha256 == merged.facts.base_sha256 != first.facts.base_sha256
    # The same records are held out again, since they were once.
    learned, found = first.facts.held_out.after_loss, second.facts.held_out.before_loss
    assert found == pytest.approx(learned, abs=1e-4)
    assert learned is not None and learned < (first.facts.held_out.before_loss or 0) - 0.5
