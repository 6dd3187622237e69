"""A settled file becomes a job, or is set aside with a report that says why."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import durable
from config import Config, Paths, RunPaths, load_config
from intake.inbox import Candidate, Inbox
from training import claims as claims_module
from training.claims import Claims, SetAside
from training.jobs import Job, JobStore


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    made = Paths(tmp_path / "base")
    made.create()
    return made


class Desk:
    """An inbox without waiting, and claims on it."""

    def __init__(self, paths: Paths, *overrides: str) -> None:
        config: Config = load_config(paths.base, ["inbox.settle_seconds=0", *overrides])
        self.paths = paths
        self.store = JobStore(paths)
        self.inbox = Inbox(paths, config.inbox)
        self.claims = Claims(paths, self.store, config)

    def drop(self, name: str, content: str = "{}\n") -> Path:
        path = self.paths.inbox / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
        return path

    def candidates(self) -> list[Candidate]:
        self.inbox.scan()
        return self.inbox.scan()

    def claim_all(self) -> list[Job | SetAside | None]:
        return [self.claims.claim(candidate) for candidate in self.candidates()]

    def claim_job(self) -> Job:
        (job,) = self.claim_all()
        assert isinstance(job, Job)
        return job

    def claim_aside(self) -> SetAside:
        (aside,) = self.claim_all()
        assert isinstance(aside, SetAside)
        return aside


def files(folder: Path) -> set[str]:
    return set(os.listdir(folder))


def test_a_claim_makes_a_run_folder_and_moves_the_original(paths: Paths) -> None:
    desk = Desk(paths)
    desk.drop("high/team/tickets.jsonl", "hello\n")
    job = desk.claim_job()
    run = paths.run(job.job_id)
    assert (job.name, job.place, job.suffix) == ("tickets.jsonl", "tickets.jsonl", ".jsonl")
    assert (job.priority, job.tags, job.number, job.state) == ("high", ("team",), 1, "queued")
    assert job.job_id == f"000001-{job.sha256[:8]}"
    assert run.input(".jsonl").read_text(encoding="utf-8") == "hello\n"
    assert durable.sha256_file(run.input(".jsonl")) == job.sha256
    assert load_config(run.config_file.parent) == load_config(paths.base, ["inbox.settle_seconds=0"])
    assert desk.store.all() == [job]
    assert files(paths.processing) == {"tickets.jsonl"}
    assert files(paths.inbox / "high" / "team") == set()


def test_a_job_is_made_also_when_its_original_cannot_be_moved_yet(paths: Paths) -> None:
    desk = Desk(paths)
    original = desk.drop("a.jsonl")
    paths.processing.rmdir()
    paths.processing.touch()
    job = desk.claim_job()
    assert desk.store.all() == [job]
    assert original.exists()
    paths.processing.unlink()
    paths.processing.mkdir()
    assert desk.claim_all() == [None]
    assert files(paths.processing) == {"a.jsonl"}
    assert desk.store.all() == [job]
    assert desk.candidates() == []


def test_two_files_of_one_name_both_live(paths: Paths) -> None:
    desk = Desk(paths)
    desk.drop("a.jsonl", "1\n")
    desk.drop("team/a.jsonl", "2\n")
    places = {job.place for job in desk.claim_all() if isinstance(job, Job)}
    assert places == {"a.jsonl", "a.000002.jsonl"} == files(paths.processing)


@pytest.mark.parametrize(
    "neighbour", ["done/a.jsonl", "failed/a.jsonl.report.json", "done/a.jsonl.refused.jsonl"]
)
def test_a_name_is_taken_by_a_file_or_by_what_would_lie_beside_it(paths: Paths, neighbour: str) -> None:
    desk = Desk(paths)
    desk.drop(neighbour)
    desk.drop("a.jsonl")
    assert desk.claim_job().place == "a.000001.jsonl"


@pytest.mark.parametrize(
    "raw", [b"new\nline.jsonl", b"esc\x1b[31m.jsonl", b"bad\xff.jsonl", b"-rf.jsonl", b"x" * 249 + b".jsonl"]
)
def test_a_hostile_name_is_moved_to_a_safe_one(paths: Paths, raw: bytes) -> None:
    desk = Desk(paths)
    with open(os.path.join(os.fsencode(paths.inbox), raw), "wb") as file:
        file.write(b"{}\n")
    job = desk.claim_job()
    assert files(paths.processing) == {job.place}
    assert job.place.isprintable() and not job.place.startswith("-")
    assert len(job.place) <= 200
    assert desk.candidates() == []


def test_the_same_bytes_go_to_done_and_the_report_names_the_earlier_job(paths: Paths) -> None:
    desk = Desk(paths)
    desk.drop("a.jsonl")
    first = desk.claim_job()
    desk.drop("copy.jsonl")
    aside = desk.claim_aside()
    assert aside.verdict == "duplicate"
    assert first.job_id in aside.reason
    report = durable.read_json(paths.done / "copy.jsonl.report.json")
    assert (report["duplicate_of"], report["sha256"]) == (first.job_id, first.sha256)
    assert first.job_id in (paths.done / "copy.jsonl.report.txt").read_text(encoding="utf-8")
    assert files(paths.done) == {"copy.jsonl", "copy.jsonl.report.json", "copy.jsonl.report.txt"}
    assert files(paths.runs) == {first.job_id}


def test_the_same_bytes_are_known_after_a_restart(paths: Paths) -> None:
    desk = Desk(paths)
    desk.drop("a.jsonl")
    first = desk.claim_job()
    desk.store.save(first.model_copy(update={"state": "finished", "outcome": "completed"}))
    again = Desk(paths)
    again.drop("b.jsonl")
    assert first.job_id in again.claim_aside().reason


@pytest.mark.parametrize("outcome", ["failed", "skipped", "refused"])
def test_bytes_that_were_never_trained_may_come_again(paths: Paths, outcome: str) -> None:
    desk = Desk(paths)
    desk.drop("a.jsonl")
    first = desk.claim_job()
    desk.store.save(first.model_copy(update={"state": "finished", "outcome": outcome}))
    desk.drop("a.jsonl")
    assert desk.claim_job().number == 2


@pytest.mark.config_key("inbox.allow_duplicates")
def test_allow_duplicates_trains_the_same_bytes_again(paths: Paths) -> None:
    desk = Desk(paths, "inbox.allow_duplicates=true")
    desk.drop("a.jsonl")
    first = desk.claim_job()
    desk.drop("a.jsonl")
    second = desk.claim_job()
    assert (first.sha256, first.number) == (second.sha256, second.number - 1)


@pytest.mark.config_key("inbox.max_file_bytes")
def test_a_file_above_max_file_bytes_is_rejected_before_it_is_copied(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(paths, "inbox.max_file_bytes=10")
    monkeypatch.setattr(claims_module, "copy_privately", lambda *_: pytest.fail("it was copied"))
    desk.drop("big.jsonl", "x" * 10 + "\n")
    aside = desk.claim_aside()
    assert aside.verdict == "too_large"
    assert "11 bytes" in aside.reason and "at most 10 (inbox.max_file_bytes)" in aside.reason
    assert files(paths.rejected) == {"big.jsonl", "big.jsonl.report.json", "big.jsonl.report.txt"}


def test_a_file_that_changes_while_it_is_taken_leaves_no_trace(paths: Paths) -> None:
    desk = Desk(paths)
    path = desk.drop("a.jsonl")
    (candidate,) = desk.candidates()
    path.write_text("{}{}\n", encoding="utf-8")
    assert desk.claims.claim(candidate) is None
    assert path.exists()
    assert files(paths.runs) == set()


def test_a_full_disk_leaves_no_trace(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(paths)
    path = desk.drop("a.jsonl")
    (candidate,) = desk.candidates()

    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(durable, "write_json", no_space)
    with pytest.raises(OSError, match="No space"):
        desk.claims.claim(candidate)
    assert path.exists()
    assert files(paths.runs) == set()
    monkeypatch.undo()
    assert desk.claim_job().number == 1


def test_an_original_that_was_rewritten_stays_for_another_look(paths: Paths) -> None:
    desk = Desk(paths)
    path = desk.drop("a.jsonl", "1\n")
    job = desk.claim_job()
    (paths.processing / job.place).rename(path)
    path.write_text("22\n", encoding="utf-8")
    Desk(paths).claims.recover()
    assert path.read_text(encoding="utf-8") == "22\n"
    assert files(paths.processing) == set()


def test_a_claim_broken_off_before_the_original_moved_is_finished_at_start(paths: Paths) -> None:
    desk = Desk(paths)
    path = desk.drop("a.jsonl")
    job = desk.claim_job()
    (paths.processing / job.place).rename(path)
    Desk(paths).claims.recover()
    assert files(paths.processing) == {job.place}
    assert not path.exists()


def test_an_original_is_known_again_on_a_disk_that_got_another_device_number(paths: Paths) -> None:
    desk = Desk(paths)
    path = desk.drop("a.jsonl")
    job = desk.claim_job()
    (paths.processing / job.place).rename(path)
    source = job.source.model_copy(update={"device": job.source.device + 1})
    JobStore(paths).save(job.model_copy(update={"source": source}))
    Desk(paths).claims.recover()
    assert files(paths.processing) == {job.place}
    assert not path.exists()


def test_an_original_under_both_names_is_left_under_the_newer(paths: Paths) -> None:
    desk = Desk(paths)
    path = desk.drop("a.jsonl")
    job = desk.claim_job()
    path.hardlink_to(paths.processing / job.place)
    Desk(paths).claims.recover()
    assert files(paths.processing) == {job.place}
    assert not path.exists()


def test_staging_folders_of_a_crash_are_removed_and_their_number_is_used_again(paths: Paths) -> None:
    staging = RunPaths(paths.runs / ".000001.partial")
    durable.make_folder(staging.data)
    staging.input(".jsonl").touch()
    durable.make_folder(paths.runs / ".000002-abcdef01.partial.partial")
    desk = Desk(paths)
    desk.claims.recover()
    assert files(paths.runs) == set()
    desk.drop("a.jsonl")
    assert desk.claim_job().number == 1


def test_files_that_a_check_did_not_finish_are_removed(paths: Paths) -> None:
    desk = Desk(paths)
    desk.drop("a.jsonl")
    data = paths.run(desk.claim_job().job_id).data
    (data / ".train.jsonl.partial").touch()
    Desk(paths).claims.recover()
    assert files(data) == {"input.jsonl"}


class Killed(BaseException):
    """Stands for a kill -9 at one call."""


def dying_at(number: int, function: Callable[..., object]) -> Callable[..., object]:
    calls = iter(range(1, number + 1))

    def call(*arguments: object, **options: object) -> object:
        if next(calls, number) == number:
            raise Killed
        return function(*arguments, **options)

    return call


@pytest.mark.parametrize("name", ["write_bytes", "write_json", "move_file"])
def test_setting_a_duplicate_aside_can_be_broken_off_anywhere(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    desk = Desk(paths)
    desk.drop("a.jsonl")
    desk.claim_job()
    desk.drop("copy.jsonl")
    (candidate,) = desk.candidates()
    monkeypatch.setattr(durable, name, dying_at(1, getattr(durable, name)))
    with pytest.raises(Killed):
        desk.claims.claim(candidate)
    monkeypatch.undo()
    again = Desk(paths)
    again.claims.recover()
    assert again.claim_aside().path == paths.done / "copy.jsonl"
    assert files(paths.done) == {"copy.jsonl", "copy.jsonl.report.json", "copy.jsonl.report.txt"}


def test_a_duplicate_that_a_power_cut_left_under_both_names_is_set_aside_once(paths: Paths) -> None:
    desk = Desk(paths)
    desk.drop("a.jsonl")
    desk.claim_job()
    path = desk.drop("copy.jsonl")
    path.hardlink_to(desk.claim_aside().path)
    Desk(paths).claims.recover()
    assert files(paths.done) == {"copy.jsonl", "copy.jsonl.report.json", "copy.jsonl.report.txt"}
    assert not path.exists()


def test_a_hard_link_to_a_file_that_was_not_set_aside_is_left_alone(paths: Paths) -> None:
    desk = Desk(paths)
    path = desk.drop("a.jsonl")
    (paths.done / "b.jsonl").hardlink_to(path)
    desk.claims.recover()
    assert path.exists()


def test_numbers_never_go_back(paths: Paths) -> None:
    desk = Desk(paths)
    for content in ("1\n", "2\n"):
        desk.drop("a.jsonl", content)
    first = desk.claim_job()
    desk.drop("b.jsonl", "3\n")
    assert desk.claim_job().number == first.number + 1
    again = Desk(paths)
    again.drop("c.jsonl", "4\n")
    assert again.claim_job().number == first.number + 2
