"""An ended job's file comes to lie in the right folder, its reports beside it, however often that is done."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import durable
from config import Paths
from monitoring.events import now
from training.filing import file_away
from training.jobs import Job, Source


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    made = Paths(tmp_path / "base")
    made.create()
    return made


def ended_job(paths: Paths, outcome: str, **fields: object) -> Job:
    """Return an ended job whose file lies in processing/."""
    job = Job(
        job_id="000001-0a0a0a0a",
        number=1,
        sha256="0a" * 32,
        size_bytes=3,
        name="a.jsonl",
        place="a.jsonl",
        suffix=".jsonl",
        source=Source(relative_path="a.jsonl", device=1, inode=1, mtime_ns=1),
        claimed_at=now(),
    ).model_copy(update={"outcome": outcome, **fields})
    run = paths.run(job.job_id)
    durable.make_folder(run.data)
    run.input(".jsonl").write_text("{}\n", encoding="utf-8")
    (paths.processing / "a.jsonl").write_text("{}\n", encoding="utf-8")
    return job


def write_card(paths: Paths, job: Job) -> None:
    run = paths.run(job.job_id)
    durable.write_json(run.report, {"schema_version": 1, "accepted": 7, "usable": True})
    run.report_text.write_text("7 records accepted\n", encoding="utf-8")
    run.refused.write_text('{"line": 3}\n', encoding="utf-8")


@pytest.mark.parametrize(
    ("outcome", "folder"),
    [("completed", "done"), ("refused", "rejected"), ("skipped", "skipped"), ("failed", "failed")],
)
def test_each_outcome_has_its_folder(paths: Paths, outcome: str, folder: str) -> None:
    job = ended_job(paths, outcome)
    assert file_away(paths, job) == paths.inbox / folder / "a.jsonl"
    assert (paths.inbox / folder / "a.jsonl").read_text(encoding="utf-8") == "{}\n"
    assert os.listdir(paths.processing) == []


def test_what_a_killed_worker_left_half_done_goes_with_its_job(paths: Paths) -> None:
    job = ended_job(paths, "skipped")
    run = paths.run(job.job_id)
    (run.folder / ".checkpoint-2.removed.partial" / "state").mkdir(parents=True)
    for checkpoint in ("checkpoint-3", "checkpoint-4"):
        (run.folder / checkpoint).mkdir()
        (run.folder / checkpoint / ".manifest.json.partial").touch()
    (run.folder / "checkpoint-4" / "manifest.json").touch()
    (run.data / ".train.jsonl.partial").touch()
    (paths.held_out / f".{job.job_id}.partial").touch()
    (paths.held_out / ".000002-0b0b0b0b.partial").touch()
    file_away(paths, job)
    assert [path.name for path in paths.base.rglob("*.partial")] == [".000002-0b0b0b0b.partial"]
    assert [path.name for path in run.folder.glob("checkpoint-*")] == ["checkpoint-4"]


def test_the_report_card_lies_beside_the_file_with_the_ending(paths: Paths) -> None:
    job = ended_job(paths, "completed", version="v0001")
    write_card(paths, job)
    file_away(paths, job)
    report = durable.read_json(paths.done / "a.jsonl.report.json")
    assert (report["accepted"], report["job"]["version"], report["job"]["outcome"]) == (
        7,
        "v0001",
        "completed",
    )
    text = (paths.done / "a.jsonl.report.txt").read_text(encoding="utf-8")
    assert "Version: v0001" in text and "7 records accepted" in text
    assert (paths.done / "a.jsonl.refused.jsonl").read_text(encoding="utf-8") == '{"line": 3}\n'


def test_a_failed_file_has_its_reason_beside_it_even_without_a_card(paths: Paths) -> None:
    job = ended_job(paths, "failed", failure_kind="nan", message="loss was not a number at step 7")
    file_away(paths, job)
    report = durable.read_json(paths.failed / "a.jsonl.report.json")
    assert (report["job"]["kind"], report["job"]["message"]) == ("nan", "loss was not a number at step 7")
    text = (paths.failed / "a.jsonl.report.txt").read_text(encoding="utf-8")
    assert "nan: loss was not a number at step 7" in text


def test_where_nothing_was_refused_no_empty_file_says_so(paths: Paths) -> None:
    job = ended_job(paths, "completed")
    write_card(paths, job)
    paths.run(job.job_id).refused.write_bytes(b"")
    file_away(paths, job)
    assert set(os.listdir(paths.done)) == {"a.jsonl", "a.jsonl.report.json", "a.jsonl.report.txt"}


def test_it_may_be_repeated(paths: Paths) -> None:
    job = ended_job(paths, "completed")
    write_card(paths, job)
    before = [file_away(paths, job), sorted(os.listdir(paths.done))]
    assert [file_away(paths, job), sorted(os.listdir(paths.done))] == before


class Killed(BaseException):
    """Stands for a kill -9 at one call."""


@pytest.mark.parametrize("name", ["write_json", "write_bytes", "copy_file", "rename_new", "move_file"])
def test_it_can_be_broken_off_anywhere_and_finished_later(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    job = ended_job(paths, "completed")
    write_card(paths, job)

    def die(*_: object, **__: object) -> None:
        raise Killed

    monkeypatch.setattr(durable, name, die)
    with pytest.raises(Killed):
        file_away(paths, job)
    monkeypatch.undo()
    file_away(paths, job)
    companions = ("", ".report.json", ".report.txt", ".refused.jsonl")
    assert set(os.listdir(paths.done)) == {f"a.jsonl{companion}" for companion in companions}


def test_a_half_made_copy_is_made_anew(paths: Paths) -> None:
    job = ended_job(paths, "completed")
    write_card(paths, job)
    (paths.done / ".a.jsonl.refused.jsonl.partial").write_text("torn", encoding="utf-8")
    file_away(paths, job)
    assert (paths.done / "a.jsonl.refused.jsonl").read_text(encoding="utf-8") == '{"line": 3}\n'


def test_where_the_original_is_gone_what_was_trained_takes_its_place(paths: Paths) -> None:
    job = ended_job(paths, "completed")
    (paths.processing / "a.jsonl").unlink()
    file_away(paths, job)
    assert (paths.done / "a.jsonl").read_text(encoding="utf-8") == "{}\n"


def test_a_folder_that_a_person_removed_is_made_again(paths: Paths) -> None:
    job = ended_job(paths, "completed")
    paths.done.rmdir()
    assert file_away(paths, job).is_file()


def test_nothing_is_put_where_an_unmounted_inbox_should_be(paths: Paths) -> None:
    job = ended_job(paths, "completed")
    paths.inbox.rename(paths.base / "unmounted")
    with pytest.raises(FileNotFoundError, match="make it again or mount it"):
        file_away(paths, job)
    assert not paths.inbox.exists()
