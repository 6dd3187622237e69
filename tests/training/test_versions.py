"""A version appears whole or not at all, and `current` always leads to a whole one."""

from __future__ import annotations

import itertools
import multiprocessing
import os
from datetime import UTC, datetime
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import filelock
import pytest
import yaml

import durable
from config import Paths
from errors import IntegrityError, UsageError
from tests.waiting import PATIENCE_SECONDS
from training.versions import HeldOutResult, RecordCounts, Version, VersionFacts, VersionStore


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    paths = Paths(tmp_path)
    paths.create()
    return paths


@pytest.fixture
def store(paths: Paths) -> VersionStore:
    return VersionStore(paths)


def facts_of(job: int, **changes: Any) -> VersionFacts:
    facts = VersionFacts(
        parent=None,
        job_id=f"{job:06d}-3f9c2a10",
        input_name="tickets.jsonl",
        input_sha256="ab" * 32,
        base_model="/models/base/small",
        base_sha256="cd" * 32,
        created_at=datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
        config={"train": {"lora_r": 16}},
        records=RecordCounts(train=190, held_out=10),
        steps=48,
        epochs=2,
        tokens=29668,
        train_loss=0.05,
        held_out=HeldOutResult(records=10, before_loss=2.46, after_loss=0.07),
        decision="promote",
        decision_reason="held-out loss 2.46 → 0.07",
    )
    return facts.model_copy(update=changes)


def publish(store: VersionStore, job: int, **changes: Any) -> Version:
    staging = store.stage()
    durable.write_bytes(staging / "adapter_model.safetensors", f"weights of job {job}".encode())
    durable.make_folder(staging / "training_state")
    durable.write_bytes(staging / "training_state" / "optimizer.pt", b"moments")
    return store.publish(staging, facts_of(job, **changes))


def publish_as(paths: Paths, store: VersionStore, number: int) -> Version:
    """Publish a version under a number of choice: a torn folder before it takes the number below."""
    torn = paths.versions / f"v{number - 1:04d}"
    torn.mkdir()
    version = publish(store, number)
    torn.rmdir()
    return version


def test_the_first_version_is_v0001_and_is_not_current_before_it_is_promoted(store: VersionStore) -> None:
    version = publish(store, 1)
    assert version.name == "v0001"
    assert store.list() == [version]
    assert store.current() is None


def test_a_published_version_remembers_its_facts(store: VersionStore) -> None:
    version = publish(store, 1)
    assert store.get("v0001").facts == facts_of(1, version="v0001")
    assert version.manifest_sha256 == durable.sha256_file(version.folder / "manifest.json")


def test_the_manifest_lists_every_file_in_sub_folders_too(store: VersionStore) -> None:
    manifest = durable.read_manifest(publish(store, 1).folder)
    assert set(manifest["files"]) == {"README.md", "adapter_model.safetensors", "training_state/optimizer.pt"}


def test_a_manifest_with_facts_of_a_later_release_is_still_read(store: VersionStore) -> None:
    version = publish(store, 1)
    manifest = durable.read_json(version.folder / "manifest.json")
    durable.write_json(version.folder / "manifest.json", {**manifest, "invented_later": 1})
    assert store.get(1).facts == version.facts


def test_versions_are_ordered_by_number_past_four_digits(paths: Paths, store: VersionStore) -> None:
    for number in (9, 11, 9999, 100000):
        publish_as(paths, store, number)
    assert [version.name for version in store.list()] == ["v0009", "v0011", "v9999", "v100000"]
    assert store.next_name() == "v100001"


def test_v9999_is_followed_by_v10000(paths: Paths, store: VersionStore) -> None:
    publish_as(paths, store, 9999)
    assert publish(store, 1).name == "v10000"
    assert store.roll_forward() == store.get("v10000")


@pytest.mark.parametrize("reference", ["v0002", "v2", "2", 2])
def test_a_version_is_found_by_name_and_by_number(store: VersionStore, reference: str | int) -> None:
    publish(store, 1)
    second = publish(store, 2)
    assert store.get(reference) == second


@pytest.mark.parametrize("reference", ["v0003", "../v0001", "", "base", -1, "v0001/.."])
def test_an_unknown_version_is_refused_with_those_that_exist(
    store: VersionStore, reference: str | int
) -> None:
    publish(store, 1)
    with pytest.raises(UsageError, match="v0001"):
        store.get(reference)


def test_asking_for_current_before_there_is_one_says_what_to_do(store: VersionStore) -> None:
    with pytest.raises(UsageError, match="drop a file"):
        store.get("current")


def test_a_staging_folder_is_fresh_and_leftovers_of_a_crash_are_removed(
    paths: Paths, store: VersionStore
) -> None:
    torn = store.stage()
    (torn / "adapter_model.safetensors").write_bytes(b"half")
    (paths.versions / ".v0009.partial").mkdir()
    (paths.versions / ".v0009.partial.partial").mkdir()
    staging = store.stage()
    assert [entry.name for entry in paths.versions.iterdir()] == [".v0001.partial"]
    assert list(staging.iterdir()) == []


def test_an_unfinished_version_is_no_version(store: VersionStore) -> None:
    staging = store.stage()
    durable.seal_folder(staging, facts_of(1).model_dump(mode="json"))
    assert store.list() == []
    assert store.version_of_job(facts_of(1).job_id) is None


def test_a_job_is_published_once(paths: Paths, store: VersionStore) -> None:
    first = publish(store, 1)
    again = publish(store, 1, tokens=1)
    assert again == first
    assert [entry.name for entry in paths.versions.iterdir()] == ["v0001"]


def test_the_version_of_a_job_is_found_by_its_manifest(store: VersionStore) -> None:
    publish(store, 1)
    second = publish(store, 2)
    assert store.version_of_job("000002-3f9c2a10") == second
    assert store.version_of_job("000003-3f9c2a10") is None


def test_a_version_number_is_not_used_again_while_a_child_remembers_it(store: VersionStore) -> None:
    publish(store, 1)
    removed = publish(store, 2)
    store.promote(removed, "better")
    store.rollback("v0001")
    durable.remove_tree(removed.folder)
    assert store.next_name() == "v0003"


def test_a_number_is_not_used_again_while_a_backup_bears_it(paths: Paths, store: VersionStore) -> None:
    publish(store, 1)
    removed = publish(store, 2)
    durable.make_folder(paths.backups)
    durable.rename_new(removed.folder, paths.backups / "v0002")
    assert store.next_name() == "v0003"


def test_a_successor_is_published_and_current_in_one_go_unless_current_has_moved(store: VersionStore) -> None:
    first = store.promote(publish(store, 1), "better")
    other = publish(store, 2)
    staging = store.stage()
    assert store.succeed(staging, facts_of(3, parent="v0001"), first).name == "v0003"
    assert store.current() == store.get("v0003")
    store.promote(other, "a person's choice")
    with pytest.raises(UsageError, match="current moved from v0001 to v0002"):
        store.succeed(store.stage(), facts_of(4, parent="v0001"), first)


def test_a_version_without_a_whole_manifest_is_left_out_and_named_in_the_log(
    store: VersionStore, caplog: pytest.LogCaptureFixture
) -> None:
    good, torn = publish(store, 1), publish(store, 2)
    (torn.folder / "manifest.json").write_text("{")
    assert store.list() == [good]
    assert "v0002" in caplog.text
    with pytest.raises(IntegrityError, match="not valid JSON"):
        store.get("v0002")


def test_a_renamed_version_is_not_believed(paths: Paths, store: VersionStore) -> None:
    publish(store, 1).folder.rename(paths.versions / "v0007")
    with pytest.raises(IntegrityError, match="v0001"):
        store.get("v0007")


def test_one_flipped_byte_is_found_and_its_file_named(store: VersionStore) -> None:
    version = publish(store, 1)
    store.verify(version)
    weights = version.folder / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[3] ^= 1
    weights.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"adapter_model\.safetensors"):
        store.verify("v0001")


def test_a_flipped_byte_anywhere_in_a_manifest_is_found(store: VersionStore) -> None:
    manifest = publish(store, 1).folder / "manifest.json"
    sealed = manifest.read_bytes()
    for position in range(len(sealed)):
        manifest.write_bytes(sealed[:position] + bytes([sealed[position] ^ 1]) + sealed[position + 1 :])
        with pytest.raises((IntegrityError, UsageError)):
            store.verify("v0001")


def test_a_manifest_of_an_earlier_release_carries_no_seal_and_is_still_verified(store: VersionStore) -> None:
    version = publish(store, 1)
    manifest = durable.read_json(version.folder / "manifest.json")
    del manifest["seal"]
    durable.write_json(version.folder / "manifest.json", {**manifest, "schema_version": 1})
    store.verify("v0001")


def test_a_missing_file_is_found(store: VersionStore) -> None:
    version = publish(store, 1)
    (version.folder / "training_state" / "optimizer.pt").unlink()
    with pytest.raises(IntegrityError, match=r"optimizer\.pt"):
        store.verify(version)


def test_a_changed_manifest_of_the_current_version_is_found(store: VersionStore) -> None:
    version = store.promote(publish(store, 1), "better")
    flattered = version.facts.model_copy(update={"train_loss": 0.0})
    durable.seal_folder(version.folder, flattered.model_dump(mode="json"))
    with pytest.raises(IntegrityError, match="changed since v0001 became current"):
        store.verify("v0001")


def test_promoting_moves_the_link_and_says_why_beside_it(paths: Paths, store: VersionStore) -> None:
    version = publish(store, 1)
    store.promote("v0001", "held-out loss fell")
    assert os.readlink(paths.current) == "versions/v0001"
    assert (paths.current / "adapter_model.safetensors").read_bytes() == b"weights of job 1"
    document = durable.read_json(paths.models / "current.json")
    assert document["version"] == "v0001"
    assert document["manifest_sha256"] == version.manifest_sha256
    assert document["pinned"] is False
    assert document["reason"] == "held-out loss fell"


def test_promoting_again_changes_nothing(store: VersionStore) -> None:
    version = publish(store, 1)
    store.promote(version, "better")
    store.promote(version, "better")
    assert store.current() == version


def test_a_damaged_version_is_not_promoted_and_current_stays(store: VersionStore) -> None:
    good, bad = publish(store, 1), publish(store, 2)
    store.promote(good, "better")
    (bad.folder / "adapter_model.safetensors").write_bytes(b"garbage")
    with pytest.raises(IntegrityError):
        store.promote(bad, "better")
    assert store.current() == good


def test_rolling_back_goes_to_the_version_current_continues(store: VersionStore) -> None:
    publish(store, 1)
    publish(store, 2, parent="v0001", decision="hold")
    store.promote(publish(store, 3, parent="v0001"), "better")
    assert store.rollback().name == "v0001"
    assert store.current() == store.get("v0001")


def test_rolling_back_from_a_first_version_is_refused(store: VersionStore) -> None:
    store.promote(publish(store, 1), "better")
    with pytest.raises(UsageError, match="trained from the base model"):
        store.rollback()


def test_a_rollback_is_not_undone_by_rolling_forward(store: VersionStore) -> None:
    publish(store, 1)
    store.promote(publish(store, 2, parent="v0001"), "better")
    store.rollback()
    assert store.roll_forward() == store.get("v0001")
    record = store.record()
    assert record is not None and record.pinned
    assert record.reason == "rolled back from v0002"


def test_a_version_promoted_after_a_rollback_unpins_it(store: VersionStore) -> None:
    publish(store, 1)
    store.promote(publish(store, 2, parent="v0001"), "better")
    store.rollback()
    third = publish(store, 3, parent="v0001")
    assert store.roll_forward() == third
    record = store.record()
    assert record is not None and not record.pinned


def test_a_version_that_was_in_training_during_a_rollback_does_not_undo_it(
    store: VersionStore, caplog: pytest.LogCaptureFixture
) -> None:
    """It was tested against the version that a person has turned away from."""
    publish(store, 1)
    store.promote(publish(store, 2, parent="v0001"), "better")
    store.rollback()
    late = publish(store, 3, parent="v0002")
    assert store.roll_forward() == store.get("v0001")
    assert "`trainbox promote v0003`" in caplog.text
    assert store.promote(late, "a person wants it", pinned=True) == store.roll_forward()
    heir = publish(store, 4, parent="v0003")
    assert store.roll_forward() == heir


def test_a_version_held_after_a_rollback_leaves_it_pinned(store: VersionStore) -> None:
    publish(store, 1)
    store.promote(publish(store, 2, parent="v0001"), "better")
    store.rollback()
    publish(store, 3, parent="v0001", decision="hold")
    assert store.roll_forward() == store.get("v0001")


def test_a_held_version_promoted_by_hand_stays_current(store: VersionStore) -> None:
    store.promote(publish(store, 1), "better")
    held = publish(store, 2, parent="v0001", decision="hold")
    store.promote(held, "a person wants it", pinned=True)
    assert store.roll_forward() == held


def test_a_crash_between_publishing_and_promoting_is_rolled_forward(store: VersionStore) -> None:
    store.promote(publish(store, 1), "better")
    second = publish(store, 2, parent="v0001", decision_reason="it is better")
    assert store.roll_forward() == second
    record = store.record()
    assert record is not None and record.reason == "it is better"


def test_a_crash_between_the_choice_and_the_link_is_rolled_forward(paths: Paths, store: VersionStore) -> None:
    first = publish(store, 1)
    store.promote(publish(store, 2, parent="v0001"), "better")
    store.rollback()
    durable.point_symlink(paths.current, "versions/v0002")
    assert store.roll_forward() == first
    assert store.current() == first
    record = store.record()
    assert record is not None and record.pinned


def test_rolling_forward_needs_neither_link_nor_choice(paths: Paths, store: VersionStore) -> None:
    publish(store, 1)
    second = publish(store, 2, parent="v0001")
    publish(store, 3, parent="v0002", decision="hold")
    assert store.roll_forward() == second
    paths.current.unlink()
    (paths.models / "current.json").write_text("{}")
    assert store.roll_forward() == second
    assert store.current() == second


def test_rolling_forward_twice_changes_nothing(paths: Paths, store: VersionStore) -> None:
    publish(store, 1)
    store.roll_forward()
    before = (paths.models / "current.json").read_bytes()
    store.roll_forward()
    assert (paths.models / "current.json").read_bytes() == before


def test_rolling_forward_without_versions_leaves_no_current(store: VersionStore) -> None:
    assert store.roll_forward() is None
    assert store.current() is None


def test_rolling_forward_passes_over_a_damaged_version(
    store: VersionStore, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = publish(store, 1), publish(store, 2, parent="v0001")
    (second.folder / "adapter_model.safetensors").write_bytes(b"garbage")
    assert store.roll_forward() == first
    assert "Cannot make v0002 current" in caplog.text


def test_a_link_to_something_else_is_an_error_for_people(paths: Paths, store: VersionStore) -> None:
    paths.current.symlink_to("base/small")
    with pytest.raises(IntegrityError, match="expected a version"):
        store.current()


def test_the_choice_waits_for_the_process_that_is_making_one(paths: Paths, store: VersionStore) -> None:
    version = publish(store, 1)
    with filelock.FileLock(paths.base / "status" / "versions.lock"):
        context = multiprocessing.get_context("spawn")
        other = context.Process(target=promote_in_another_process, args=(paths.base,))
        other.start()
        other.join(timeout=2)
        assert other.is_alive()
        assert store.current() is None
    other.join(timeout=PATIENCE_SECONDS)
    assert other.exitcode == 0
    assert store.current() == version


def promote_in_another_process(base: Path) -> None:
    VersionStore(Paths(base)).promote("v0001", "better")


def read_current_until(base: Path, ready: Event, enough: Event, stop: Event, failures: Any) -> None:
    """Follow `current` again and again; put what was missing into `failures`, and the count of reads last."""
    reads = 0
    while not stop.is_set():
        try:
            content = (base / "models" / "current" / "adapter_model.safetensors").read_bytes()
            if not content.startswith(b"weights of job "):
                failures.put(repr(content))
        except OSError as error:
            failures.put(str(error))
        reads += 1
        ready.set()
        if reads > 500:
            enough.set()
    failures.put(reads)


def test_a_reader_never_misses_current_during_five_hundred_swaps(paths: Paths, store: VersionStore) -> None:
    first, second = publish(store, 1), publish(store, 2)
    store.promote(first, "start")
    context = multiprocessing.get_context("spawn")
    ready, enough, stop = context.Event(), context.Event(), context.Event()
    failures = context.Queue()
    reader = context.Process(target=read_current_until, args=(paths.base, ready, enough, stop, failures))
    reader.start()
    try:
        assert ready.wait(PATIENCE_SECONDS)
        for swap in itertools.count():
            store.promote((second, first)[swap % 2], f"swap {swap}")
            # A busy machine may give the reader its turns later.
            if swap >= 500 and (enough.is_set() or not reader.is_alive()):
                break
    finally:
        stop.set()
        reads = failures.get(timeout=PATIENCE_SECONDS)
        reader.join(timeout=PATIENCE_SECONDS)
    assert isinstance(reads, int), reads
    assert reads > 500


def test_the_model_card_tells_origin_scores_and_how_to_load(store: VersionStore) -> None:
    card = (publish(store, 1, parent="v0009").folder / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert header == {
        "base_model": "/models/base/small",
        "library_name": "peft",
        "tags": ["lora", "trainbox"],
    }
    for fact in (
        "# v0001",
        "v0009",
        "tickets.jsonl",
        "190 records",
        "2.4600",
        "0.0700",
        "PeftModel",
        "cd" * 32,
    ):
        assert fact in card


def test_the_code_in_the_model_card_is_python(store: VersionStore) -> None:
    card = (publish(store, 1, base_model="it's a \\ folder").folder / "README.md").read_text()
    code = card.split("```python")[1].split("```")[0]
    compile(code, "README.md", "exec")


def test_a_hostile_file_name_cannot_break_out_of_the_model_card(store: VersionStore) -> None:
    name = "a`|\n# owned\n.jsonl"
    card = (publish(store, 1, input_name=name).folder / "README.md").read_text()
    assert "\n# owned" not in card
    assert r"`a'\| # owned .jsonl`" in card
