"""What a version is tested on: in an order that hangs on the items alone, every file of its lineage."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

import durable
from chat_template import ChatTemplate
from config import Config, Paths, load_config
from errors import ConfigError, IntegrityError
from evaluation.examination import Examiner
from evaluation.items import Item, Passage
from intake.formats import Record
from tests.conftest import CORPUS
from training.batches import collate
from training.dataset import TokenRows, tokenise_run
from training.model import load_learner
from training.slices import Slice, earlier_slices, every_held_out_slice, held_out_slice, suite_slices
from training.trainer import PlannedTrainer, build_trainer
from training.version_report import REPORT, SliceFacts, Verdict, VersionReport
from training.versions import RecordCounts, Version

JOBS = ["000001-3f9c2a10", "000002-3f9c2a10", "000003-3f9c2a10"]


def texts(count: int, seed: int = 0) -> list[Record]:
    draw = random.Random(seed)
    return [
        Record(line, "text", text=" ".join(draw.choices(" ".join(CORPUS).split(), k=draw.randint(3, 40))))
        for line in range(1, count + 1)
    ]


def pairs_of(raw: list[dict[str, Any]]) -> list[Record]:
    return [Record(line, "preference", **one) for line, one in enumerate(raw, 1)]


def talks(raw: list[dict[str, Any]]) -> list[Record]:
    """Make conversations that end with thanks, so that no answer of theirs can be asked for."""
    thanks = {"role": "user", "content": "thanks"}
    return [Record(line, "chat", [*one["messages"], thanks]) for line, one in enumerate(raw, 1)]


def keep(paths: Paths, job_id: str, records: list[Record]) -> Path:
    """Write what a job has held out."""
    file = paths.held_out / f"{job_id}.jsonl"
    durable.make_folder(file.parent)
    file.write_bytes(b"".join(orjson.dumps(record.to_json()) + b"\n" for record in records))
    return file


# --- order


def test_the_order_hangs_on_the_items_alone(tmp_path: Path) -> None:
    records = texts(30)
    orders = []
    for seed in range(3):
        shuffled = random.Random(seed).sample(records, len(records))
        paths = Paths(tmp_path / str(seed))
        keep(paths, JOBS[seed], shuffled)
        orders.append([item.item_id for item in held_out_slice(paths, JOBS[seed], f"{seed}.jsonl").items])
    assert orders[0] == orders[1] == orders[2]
    assert sorted(orders[0]) == sorted(record.key().hex() for record in records)
    assert orders[0] != sorted(orders[0])


def test_a_smaller_slice_keeps_the_order_of_a_larger_one(tmp_path: Path) -> None:
    records = texts(30)
    keep(Paths(tmp_path), JOBS[0], records)
    keep(Paths(tmp_path), JOBS[1], records[::2])
    large, small = (held_out_slice(Paths(tmp_path), job, "x") for job in JOBS[:2])
    chosen = {item.item_id for item in small.items}
    assert [item.item_id for item in large.items if item.item_id in chosen] == [
        item.item_id for item in small.items
    ]


def test_a_slice_tells_what_can_be_asked_from_what_has_a_loss_alone(
    tmp_path: Path, make_chats: Callable[..., Any]
) -> None:
    chats = [Record(line, "chat", one["messages"]) for line, one in enumerate(make_chats(3), 1)]
    keep(Paths(tmp_path), JOBS[0], [*chats, *texts(2)])
    found = held_out_slice(Paths(tmp_path), JOBS[0], "mixed.jsonl")
    assert {type(item) for item in found.asked} == {Item} and len(found.asked) == 3
    assert {type(item) for item in found.passages} == {Passage} and len(found.passages) == 2
    assert found.facts(5) == SliceFacts(slice_id=JOBS[0], kind="held_out", name="mixed.jsonl", records=5)


def test_a_file_that_held_nothing_out_has_a_slice_without_items(tmp_path: Path) -> None:
    assert held_out_slice(Paths(tmp_path), JOBS[0], "x") == Slice(JOBS[0], "held_out", "x", ())


def test_a_suite_that_is_named_twice_counts_once(tmp_path: Path) -> None:
    config = load_config(tmp_path, ["evaluation.suites=[everyday_facts, everyday_formats, everyday_facts]"])
    found = suite_slices(Paths(tmp_path), config.evaluation)
    assert [part.name for part in found] == ["everyday_facts", "everyday_formats"]


def test_a_suite_that_is_not_there_is_named(tmp_path: Path) -> None:
    config = load_config(tmp_path, ["evaluation.suites=[nowhere.jsonl]"])
    with pytest.raises(ConfigError, match=r"evaluation\.suites.*nowhere\.jsonl"):
        suite_slices(Paths(tmp_path), config.evaluation)


# --- lineage


def test_a_file_whose_version_was_held_is_not_among_the_earlier_ones(shelf: Any) -> None:
    for version in shelf.store.list():
        keep(shelf.paths, version.facts.job_id, texts(2, seed=int(version.name[1:])))
    jobs = {version.name: version.facts.job_id for version in shelf.store.list()}
    found = earlier_slices(shelf.paths, shelf.store.get("v0006"))
    assert [part.slice_id for part in found] == [jobs[name] for name in ("v0001", "v0004", "v0005", "v0006")]
    assert {part.kind for part in found} == {"held_out"}
    assert [part.slice_id for part in every_held_out_slice(shelf.paths)] == sorted(jobs.values())
    assert earlier_slices(shelf.paths, None) == []


def write_report(version: Version, *jobs: str, records: int = 2) -> None:
    """Let the report of a version name the files that it was tested on."""
    held_out = [
        SliceFacts(slice_id=job, kind="held_out", name="named.jsonl", records=records) for job in jobs
    ]
    suite = SliceFacts(slice_id="easy-0", kind="suite", name="easy", records=2)
    verdict = Verdict(decision="promote", policy="not_worse", reasons=())
    report = VersionReport(slices=(*held_out, suite), verdict=verdict)
    durable.write_json(version.folder / REPORT, report.model_dump(mode="json"))


@pytest.fixture
def lineage(shelf: Any) -> list[Version]:
    """Versions of which each continues the one before; what their files held out is kept."""
    versions = [shelf.store.get(name) for name in ("v0001", "v0004", "v0005", "v0006")]
    for number, version in enumerate(versions):
        keep(shelf.paths, version.facts.job_id, texts(2, seed=number))
    return versions


def test_versions_that_were_removed_leave_no_gap(shelf: Any, lineage: list[Version]) -> None:
    """The report of each version names the files before it."""
    *others, last = lineage
    jobs = [version.facts.job_id for version in lineage]
    write_report(last, *jobs)
    before = earlier_slices(shelf.paths, last)
    for version in others:
        durable.remove_tree(version.folder)
    after = earlier_slices(shelf.paths, last)
    assert [part.slice_id for part in after] == jobs
    assert [part.items for part in after] == [part.items for part in before]


def test_an_earlier_file_that_held_nothing_out_is_no_slice(shelf: Any) -> None:
    """Its records were too long or too few to keep any of them back."""
    first = shelf.add(records=RecordCounts(train=12, held_out=0))
    current = shelf.add(parent=first.name)
    keep(shelf.paths, current.facts.job_id, texts(1))
    assert [part.slice_id for part in earlier_slices(shelf.paths, current)] == [current.facts.job_id]
    write_report(current, current.facts.job_id)
    assert [part.slice_id for part in earlier_slices(shelf.paths, current)] == [current.facts.job_id]


@pytest.mark.parametrize("is_reported", [True, False])
def test_held_out_records_that_are_gone_are_missed_with_what_to_do(
    shelf: Any, lineage: list[Version], is_reported: bool
) -> None:
    if is_reported:
        write_report(lineage[-1], *(version.facts.job_id for version in lineage))
    lost = lineage[1].facts.job_id
    file = shelf.paths.held_out / f"{lost}.jsonl"
    file.unlink()
    with pytest.raises(IntegrityError) as missed:
        earlier_slices(shelf.paths, lineage[-1])
    message = str(missed.value)
    assert str(file) in message and "v0006" in message and "restore it from a backup" in message
    assert str(shelf.paths.run(lost).held_out_records) not in message
    keep_in_run(shelf.paths, lost)
    with pytest.raises(IntegrityError, match=str(shelf.paths.run(lost).held_out_records)):
        earlier_slices(shelf.paths, lineage[-1])
    file.touch()  # a person gives the test on it up
    assert lost not in [part.slice_id for part in earlier_slices(shelf.paths, lineage[-1])]


def keep_in_run(paths: Paths, job_id: str) -> None:
    """Leave the records that a job held out where they were written first."""
    file = paths.run(job_id).held_out_records
    durable.make_folder(file.parent)
    file.write_bytes(b"{}\n")


def test_only_the_newest_report_is_read_so_that_an_older_one_that_is_damaged_ends_no_run(
    shelf: Any, lineage: list[Version]
) -> None:
    jobs = [version.facts.job_id for version in lineage]
    write_report(lineage[2], *jobs[:3])
    durable.write_json(lineage[0].folder / REPORT, {"verdict": "fine"})
    assert [part.slice_id for part in earlier_slices(shelf.paths, lineage[3])] == jobs
    durable.write_json(lineage[2].folder / REPORT, {"verdict": "fine"})
    with pytest.raises(IntegrityError, match=str(lineage[2].folder / REPORT)):
        earlier_slices(shelf.paths, lineage[3])


# --- the same losses as in training


@pytest.fixture
def trained(tmp_path: Path, tiny_model: Path) -> Callable[..., tuple[PlannedTrainer, TokenRows, Examiner]]:
    def make(records: list[Record], *overrides: str) -> tuple[PlannedTrainer, TokenRows, Examiner]:
        config: Config = load_config(tmp_path, ["model.precision=float32", *overrides])
        template = ChatTemplate.load(tiny_model)
        files = {"held_out": keep(Paths(tmp_path), JOBS[0], records)}
        rows = tokenise_run(tmp_path / "tokens", files, template, "key", config.data, lambda done: None)[
            "held_out"
        ]
        learner = load_learner(tiny_model, config, None)
        trainer = build_trainer(learner, tmp_path / "run", config, rows.facts.kind, [])
        trainer.setup(config, rows, rows, pad_token_id=template.pad_token_id)
        return trainer, rows, Examiner(trainer.model, template, config.evaluation, config.data)

    return make


@pytest.mark.parametrize(
    "data",
    [
        (),
        ("data.max_length=16", "data.excess_length=split"),
        ("data.max_length=16", "data.excess_length=truncate"),
    ],
    ids=["whole", "split", "truncate"],
)
@pytest.mark.parametrize("kind", ["texts", "talks"])
def test_the_losses_of_passages_are_those_that_the_trainer_measures(
    kind: str, data: tuple[str, ...], trained: Any, tmp_path: Path, make_chats: Callable[..., Any]
) -> None:
    records = texts(7) if kind == "texts" else talks(make_chats(7))
    trainer, rows, examiner = trained(records, *data)
    losses = trainer.record_losses(rows)
    sums, weights = dict.fromkeys(range(1, 8), 0.0), dict.fromkeys(range(1, 8), 0)
    for line, nats, tokens in zip(rows.lines, losses.sums, losses.weights, strict=True):
        sums[line] += nats
        weights[line] += tokens
    part = held_out_slice(Paths(tmp_path), JOBS[0], "x")
    found = {result.item_id: result for result in examiner.examine(part.items)}
    for record in records:
        result = found[record.key().hex()]
        assert (result.loss_tokens or 0) == weights[record.line]
        assert (result.loss_sum or 0.0) == pytest.approx(sums[record.line], rel=1e-4)
    assert sum(weights.values()) == sum(losses.weights) > 0


def test_what_counts_of_a_pair_is_what_the_trainer_reckons_with(
    trained: Any, tmp_path: Path, make_pairs: Callable[..., Any]
) -> None:
    records = pairs_of(make_pairs(6))
    trainer, rows, examiner = trained(records)
    batch = collate([rows.dataset[number] for number in range(6)], packed=False, pad_token_id=3)
    sums, counts = (-trainer.log_probs(batch)).tolist(), batch.counts
    part = held_out_slice(Paths(tmp_path), JOBS[0], "x")
    found = {result.item_id: result for result in examiner.examine(part.items)}
    for number, record in enumerate(records):
        result = found[record.key().hex()]
        assert result.loss_tokens == counts[number]
        assert result.loss_sum == pytest.approx(sums[number], rel=1e-4)
        chosen, rejected = sums[number] / counts[number], sums[number + 6] / counts[number + 6]
        assert result.prefers_expected is (chosen < rejected)
        assert (result.answer, result.correct, result.says_expected) == (None, None, None)
