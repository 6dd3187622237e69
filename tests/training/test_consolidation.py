"""Consolidation: nothing learned is lost, at whatever moment it is killed."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import pytest
import torch

import durable
from config import BackupConfig, Config, Paths, load_config
from errors import EnvironmentNotReady, IntegrityError, UsageError
from training.backups import Backups, Examined
from training.consolidation import Consolidation
from training.full_models import read_full_model
from training.merging import TOLERANCE
from training.model import load_generator
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
    learned: Any, make_chats: Records
) -> None:
    first = VersionStore(learned.paths).get("v0001")
    merged = Consolidation(learned.paths, config_of(learned, "train.lora_r=4")).carry_out()
    assert (merged.name, merged.facts.parent, merged.facts.kind) == ("v0002", "v0001", "consolidation")
    assert VersionStore(learned.paths).current() == merged
    second = trained(learned, make_chats(48))
    assert (second.facts.parent, second.facts.consolidated) == ("v0002", "v0001")
    assert second.facts.base_sha256 == merged.facts.base_sha256 != first.facts.base_sha256
    # The same records are held out again, since they were once.
    learned, found = first.facts.held_out.after_loss, second.facts.held_out.before_loss
    assert found == pytest.approx(learned, abs=1e-4)
    assert learned is not None and learned < (first.facts.held_out.before_loss or 0) - 0.5


def test_consolidating_again_changes_nothing(learned: Any, make_chats: Records) -> None:
    merged = Consolidation(learned.paths, config_of(learned)).carry_out()
    assert Consolidation(learned.paths, config_of(learned)).carry_out() == merged
    assert len(VersionStore(learned.paths).list()) == 2


def test_the_full_model_says_where_it_comes_from_and_the_version_before_is_backed_up(
    learned: Any, make_chats: Records
) -> None:
    first = VersionStore(learned.paths).get("v0001")
    merged = Consolidation(learned.paths, config_of(learned)).carry_out()
    folder = learned.paths.consolidated / "v0001"
    assert merged.facts.base_model == str(folder)
    durable.verify_folder(folder)
    facts = read_full_model(folder)
    assert (facts.source, facts.lineage) == ("v0001", ("v0001",))
    assert facts.source_manifest_sha256 == first.manifest_sha256
    assert facts.origin_sha256 == facts.base_sha256 == first.facts.base_sha256
    assert facts.likeness.is_close and facts.likeness.same_answers == facts.likeness.prompts == 10
    assert durable.is_sealed(learned.paths.backups / "v0001")


def test_a_second_consolidation_merges_what_was_learned_on_the_first(
    learned: Any, make_chats: Records
) -> None:
    Consolidation(learned.paths, config_of(learned)).carry_out()
    trained(learned, make_chats(24, seed=1))
    merged = Consolidation(learned.paths, config_of(learned)).carry_out()
    assert (merged.name, merged.facts.consolidated) == ("v0004", "v0003")
    facts = read_full_model(learned.paths.consolidated / "v0003")
    assert facts.lineage == ("v0003", "v0002", "v0001")
    assert facts.base_sha256 != facts.origin_sha256
    assert facts.origin == str(learned.model)


def test_a_consolidated_version_answers_as_the_one_before_and_rolls_back_to_it(
    learned: Any, make_chats: Records
) -> None:
    config = config_of(learned, "evaluation.max_new_tokens=8")
    Consolidation(learned.paths, config).carry_out()

    def answer(which: str) -> str:
        generator = load_generator(learned.paths, config, which)
        return generator.generate([[{"role": "user", "content": "red"}]])[0].text

    assert answer("current") == answer("v0002") == answer("v0001") != answer("base")
    assert VersionStore(learned.paths).rollback().name == "v0001"
    assert Consolidation(learned.paths, config).carry_out().name == "v0002"


def test_a_run_that_has_begun_is_let_finish_first(learned: Any, make_chats: Records) -> None:
    job = learned.job(make_chats(40, seed=1), "train.per_device_train_batch_size=2")
    learned.carry_out(job, command="pause", at_step=3)
    with pytest.raises(UsageError, match=f"{job}.* has begun .*trainbox skip"):
        Consolidation(learned.paths, config_of(learned)).carry_out()
    learned.carry_out(job)
    assert Consolidation(learned.paths, config_of(learned)).carry_out().name == "v0003"


def test_while_a_worker_trains_nothing_is_merged(learned: Any, make_chats: Records) -> None:
    held = filelock.FileLock(learned.paths.worker_lock, thread_local=False)
    with held, pytest.raises(EnvironmentNotReady, match="a job is being trained"):
        Consolidation(learned.paths, config_of(learned)).carry_out()
    assert not learned.paths.consolidated.exists()


def test_a_full_model_of_another_base_is_not_trained_on(
    learned: Any, make_chats: Records, tmp_path: Path
) -> None:
    Consolidation(learned.paths, config_of(learned)).carry_out()
    moved = tmp_path / "the same base elsewhere"
    shutil.copytree(learned.model, moved)
    load_generator(learned.paths, config_of(learned, f"model.base={moved}"), "current")
    weights = bytearray((moved / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (moved / "model.safetensors").write_bytes(weights)
    with pytest.raises(IntegrityError, match="stands on a full model that was made from"):
        load_generator(learned.paths, config_of(learned, f"model.base={moved}"), "current")


def test_a_damaged_full_model_is_not_trained_on_and_restored_from_the_second_root(
    learned: Any, make_chats: Records, tmp_path: Path, flip_byte: Callable[..., None]
) -> None:
    root = tmp_path / "second disk"
    root.mkdir()
    config = config_of(learned, f"backup.root={root}")
    merged = Consolidation(learned.paths, config).carry_out()
    backups = Backups(learned.paths, VersionStore(learned.paths), config.backup)
    backups.back_up(merged)
    flip_byte(learned.paths.consolidated / "v0001" / "model.safetensors", 5000)
    with pytest.raises(IntegrityError, match="trainbox versions restore v0002"):
        load_generator(learned.paths, config, "current")
    backups.restore("v0002")
    load_generator(learned.paths, config, "current")


def test_a_merge_that_answers_otherwise_is_thrown_away(
    learned: Any, make_chats: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TOLERANCE, "float16", 0.0)
    with pytest.raises(IntegrityError, match="merged answers otherwise"):
        Consolidation(learned.paths, config_of(learned), "float16").carry_out()
    assert list(learned.paths.consolidated.iterdir()) == []
    assert VersionStore(learned.paths).get("current").name == "v0001"


def consolidate_until(base: Path, settings: list[str], fatal: int) -> None:
    """Consolidate in a process of its own; be killed just before its `fatal`-th rename."""
    renames = itertools.count(1)

    def deadly(rename: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            if next(renames) == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(*arguments)

        return call

    durable.rename_new = deadly(durable.rename_new)
    os.replace = deadly(os.replace)
    os.rename = deadly(os.rename)
    torch.set_num_threads(1)
    Consolidation(Paths(base), load_config(base, settings)).carry_out()


def test_killed_before_any_of_its_renames_the_old_model_trains_and_consolidating_again_finishes(
    learned: Any, make_chats: Records, tmp_path_factory: pytest.TempPathFactory
) -> None:
    settings = [f"model.base={learned.model}", "model.precision=float32", "train.threads=1"]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training.consolidation"])
    stages: list[str] = []
    for fatal in itertools.count(1):
        killed = type(learned)(tmp_path_factory.mktemp("killed") / "base", learned.model)
        shutil.copytree(learned.paths.base, killed.paths.base, symlinks=True, dirs_exist_ok=True)
        process = context.Process(target=consolidate_until, args=(killed.paths.base, settings, fatal))
        process.start()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        stages.append(stage_of(killed))
        if stages[-1] not in stages[:-1]:
            trains_on = type(learned)(tmp_path_factory.mktemp("old-model") / "base", learned.model)
            shutil.copytree(killed.paths.base, trains_on.paths.base, symlinks=True, dirs_exist_ok=True)
            assert trained(trains_on, make_chats(8, seed=2)).facts.parent == "v0001"
        merged = Consolidation(killed.paths, load_config(killed.paths.base, settings)).carry_out()
        assert merged.facts.parent == "v0001"
        assert VersionStore(killed.paths).current() == merged
        assert list(killed.paths.models.rglob("*.partial")) == []
        assert [examined.damage for examined in everything(killed)] == [[]] * 4
    assert list(dict.fromkeys(stages)) == ["begun", "backed up", "merged", "published"]


def everything(workshop: Any) -> list[Examined]:
    return list(Backups(workshop.paths, VersionStore(workshop.paths), BackupConfig()).examine())


def stage_of(workshop: Any) -> str:
    """Return how far a consolidation got before it was killed; current must be whole whenever it was."""
    store = VersionStore(workshop.paths)
    current = store.get("current")
    store.verify(current)
    if current.name != "v0001":
        return "switched"
    if len(store.list()) > 1:
        return "published"
    if (workshop.paths.consolidated / "v0001").exists():
        return "merged"
    return "backed up" if (workshop.paths.backups / "v0001").exists() else "begun"
