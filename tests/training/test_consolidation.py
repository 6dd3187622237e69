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


def test_consolidating_again_changes_nothing(workshop: Any, make_chats: Records) -> None:
    trained(workshop, make_chats(24))
    merged = Consolidation(workshop.paths, config_of(workshop)).carry_out()
    assert Consolidation(workshop.paths, config_of(workshop)).carry_out() == merged
    assert len(VersionStore(workshop.paths).list()) == 2


def test_the_full_model_says_where_it_comes_from_and_the_version_before_is_backed_up(
    workshop: Any, make_chats: Records
) -> None:
    first = trained(workshop, make_chats(24))
    merged = Consolidation(workshop.paths, config_of(workshop)).carry_out()
    folder = workshop.paths.consolidated / "v0001"
    assert merged.facts.base_model == str(folder)
    durable.verify_folder(folder)
    facts = read_full_model(folder)
    assert (facts.source, facts.lineage) == ("v0001", ("v0001",))
    assert facts.source_manifest_sha256 == first.manifest_sha256
    assert facts.origin_sha256 == facts.base_sha256 == first.facts.base_sha256
    assert facts.likeness.is_close and facts.likeness.same_answers == facts.likeness.prompts == 10
    assert durable.is_sealed(workshop.paths.backups / "v0001")


def test_a_second_consolidation_merges_what_was_learned_on_the_first(
    workshop: Any, make_chats: Records
) -> None:
    trained(workshop, make_chats(24))
    Consolidation(workshop.paths, config_of(workshop)).carry_out()
    trained(workshop, make_chats(24, seed=1))
    merged = Consolidation(workshop.paths, config_of(workshop)).carry_out()
    assert (merged.name, merged.facts.consolidated) == ("v0004", "v0003")
    facts = read_full_model(workshop.paths.consolidated / "v0003")
    assert facts.lineage == ("v0003", "v0002", "v0001")
    assert facts.base_sha256 != facts.origin_sha256
    assert facts.origin == str(workshop.model)


def test_a_consolidated_version_answers_as_the_one_before_and_rolls_back_to_it(
    workshop: Any, make_chats: Records
) -> None:
    trained(workshop, make_chats(24))
    config = config_of(workshop, "evaluation.max_new_tokens=8")
    Consolidation(workshop.paths, config).carry_out()

    def answer(which: str) -> str:
        generator = load_generator(workshop.paths, config, which)
        return generator.generate([[{"role": "user", "content": "red"}]])[0].text

    assert answer("current") == answer("v0002") == answer("v0001") != answer("base")
    assert VersionStore(workshop.paths).rollback().name == "v0001"
    assert Consolidation(workshop.paths, config).carry_out().name == "v0002"


def test_a_run_that_has_begun_is_let_finish_first(workshop: Any, make_chats: Records) -> None:
    trained(workshop, make_chats(24))
    job = workshop.job(make_chats(40, seed=1), "train.per_device_train_batch_size=2")
    workshop.carry_out(job, command="pause", at_step=3)
    with pytest.raises(UsageError, match=f"{job}.* has begun .*trainbox skip"):
        Consolidation(workshop.paths, config_of(workshop)).carry_out()
    workshop.carry_out(job)
    assert Consolidation(workshop.paths, config_of(workshop)).carry_out().name == "v0003"


def test_while_a_worker_trains_nothing_is_merged(workshop: Any, make_chats: Records) -> None:
    trained(workshop, make_chats(24))
    held = filelock.FileLock(workshop.paths.worker_lock, thread_local=False)
    with held, pytest.raises(EnvironmentNotReady, match="a job is being trained"):
        Consolidation(workshop.paths, config_of(workshop)).carry_out()
    assert not workshop.paths.consolidated.exists()


def test_a_full_model_of_another_base_is_not_trained_on(
    workshop: Any, make_chats: Records, tmp_path: Path
) -> None:
    trained(workshop, make_chats(24))
    Consolidation(workshop.paths, config_of(workshop)).carry_out()
    moved = tmp_path / "the same base elsewhere"
    shutil.copytree(workshop.model, moved)
    load_generator(workshop.paths, config_of(workshop, f"model.base={moved}"), "current")
    weights = bytearray((moved / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (moved / "model.safetensors").write_bytes(weights)
    with pytest.raises(IntegrityError, match="stands on a full model that was made from"):
        load_generator(workshop.paths, config_of(workshop, f"model.base={moved}"), "current")


def test_a_damaged_full_model_is_not_trained_on_and_restored_from_the_second_root(
    workshop: Any, make_chats: Records, tmp_path: Path, flip_byte: Callable[..., None]
) -> None:
    root = tmp_path / "second disk"
    root.mkdir()
    config = config_of(workshop, f"backup.root={root}")
    trained(workshop, make_chats(24))
    merged = Consolidation(workshop.paths, config).carry_out()
    backups = Backups(workshop.paths, VersionStore(workshop.paths), config.backup)
    backups.back_up(merged)
    flip_byte(workshop.paths.consolidated / "v0001" / "model.safetensors", 5000)
    with pytest.raises(IntegrityError, match="trainbox versions restore v0002"):
        load_generator(workshop.paths, config, "current")
    backups.restore("v0002")
    load_generator(workshop.paths, config, "current")


def test_a_merge_that_answers_otherwise_is_thrown_away(
    workshop: Any, make_chats: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(workshop, make_chats(24))
    monkeypatch.setitem(TOLERANCE, "float16", 0.0)
    with pytest.raises(IntegrityError, match="merged answers otherwise"):
        Consolidation(workshop.paths, config_of(workshop), "float16").carry_out()
    assert list(workshop.paths.consolidated.iterdir()) == []
    assert VersionStore(workshop.paths).get("current").name == "v0001"


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
    os.replace = deadly(os.replace)  # type: ignore[assignment]
    os.rename = deadly(os.rename)  # type: ignore[assignment]
    torch.set_num_threads(1)
    Consolidation(Paths(base), load_config(base, settings)).carry_out()


def test_killed_before_any_of_its_renames_the_old_model_trains_and_consolidating_again_finishes(
    workshop: Any, make_chats: Records, tmp_path_factory: pytest.TempPathFactory
) -> None:
    trained(workshop, make_chats(24))
    settings = [f"model.base={workshop.model}", "model.precision=float32", "train.threads=1"]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training.consolidation"])
    stages: list[str] = []
    for fatal in itertools.count(1):
        killed = type(workshop)(tmp_path_factory.mktemp("killed") / "base", workshop.model)
        shutil.copytree(workshop.paths.base, killed.paths.base, symlinks=True, dirs_exist_ok=True)
        process = context.Process(target=consolidate_until, args=(killed.paths.base, settings, fatal))
        process.start()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        stages.append(stage_of(killed))
        if stages[-1] not in stages[:-1]:
            job = killed.job(make_chats(8, seed=2))
            parent = "v0002" if stages[-1] == "switched" else "v0001"
            assert killed.carry_out(job)[0].outcome == "completed"
            assert VersionStore(killed.paths).version_of_job(job).facts.parent == parent
            shutil.rmtree(killed.paths.versions / VersionStore(killed.paths).version_of_job(job).name)
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
