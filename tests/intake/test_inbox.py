"""When a file is taken, what is left alone, and how names are made safe."""

from __future__ import annotations

import logging
import mmap
import os
import socket
import string
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import durable
from config import InboxConfig, Paths
from intake.inbox import (
    COMPANIONS,
    MAX_PLACE_BYTES,
    SUFFIXES,
    Candidate,
    Inbox,
    copy_privately,
    display_name,
    is_temporary,
    path_from_relative,
    place_name,
)


class Clock:
    """Monotonic time that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    made = Paths(tmp_path / "base")
    made.create()
    return made


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def inbox(paths: Paths, clock: Clock) -> Inbox:
    return Inbox(paths, InboxConfig(settle_seconds=3.0), clock)


def drop(paths: Paths, name: str, content: str = "{}\n") -> Path:
    path = paths.inbox / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def settle(inbox: Inbox, clock: Clock) -> list[Candidate]:
    """Scan, let the settle time pass, and scan again."""
    inbox.scan()
    clock.now += 3.0
    return inbox.scan()


def names(candidates: list[Candidate]) -> list[str]:
    return [candidate.name for candidate in candidates]


def test_a_file_is_taken_after_it_stood_still(paths: Paths, inbox: Inbox, clock: Clock) -> None:
    drop(paths, "a.jsonl")
    assert inbox.scan() == []
    assert inbox.settling()
    clock.now += 2.9
    assert inbox.scan() == []
    clock.now += 0.2
    assert names(inbox.scan()) == ["a.jsonl"]
    assert not inbox.settling()


def test_one_look_is_not_enough_however_old_the_file(paths: Paths, inbox: Inbox) -> None:
    os.utime(drop(paths, "a.jsonl"), (0, 0))
    assert inbox.scan() == []


def test_a_growing_file_waits_from_its_last_change(paths: Paths, inbox: Inbox, clock: Clock) -> None:
    path = drop(paths, "a.jsonl")
    inbox.scan()
    for _ in range(5):
        clock.now += 2.0
        path.write_text(path.read_text(encoding="utf-8") + "{}\n", encoding="utf-8")
        assert inbox.scan() == []
    clock.now += 3.0
    assert names(inbox.scan()) == ["a.jsonl"]


def test_a_file_replaced_under_its_name_waits_again(paths: Paths, inbox: Inbox, clock: Clock) -> None:
    first = drop(paths, "a.jsonl")
    facts = first.stat()
    inbox.scan()
    other = drop(paths, ".a.jsonl.Xy12ab")
    os.utime(other, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    other.rename(first)
    clock.now += 3.0
    assert inbox.scan() == []


@pytest.mark.config_key("inbox.settle_seconds")
def test_settle_seconds_says_how_long_a_file_stands_still(paths: Paths, clock: Clock) -> None:
    drop(paths, "a.jsonl")
    hasty, patient = (Inbox(paths, InboxConfig(settle_seconds=s), clock) for s in (0.0, 60.0))
    for inbox in (hasty, patient):
        inbox.scan()
    clock.now += 1.0
    assert names(hasty.scan()) == ["a.jsonl"]
    assert patient.scan() == []


@pytest.mark.config_key("inbox.poll_seconds")
def test_poll_seconds_is_the_longest_time_between_two_looks(paths: Paths, clock: Clock) -> None:
    inbox = Inbox(paths, InboxConfig(settle_seconds=3.0, poll_seconds=7.0), clock)
    inbox.scan()
    assert inbox.seconds_to_next_look() == 7.0
    drop(paths, "a.jsonl")
    inbox.scan()
    clock.now += 1.0
    assert inbox.seconds_to_next_look() == 2.0


def test_a_file_somebody_has_open_for_writing_is_left_alone(paths: Paths, inbox: Inbox, clock: Clock) -> None:
    path = drop(paths, "a.jsonl")
    with path.open("a", encoding="utf-8"):
        assert settle(inbox, clock) == []
        assert inbox.settling()
        assert inbox.seconds_to_next_look() == InboxConfig().poll_seconds
    assert names(inbox.scan()) == ["a.jsonl"]


def test_a_file_written_through_a_memory_map_is_left_alone(paths: Paths, inbox: Inbox, clock: Clock) -> None:
    path = drop(paths, "a.jsonl")
    with path.open("r+b") as file:
        view = mmap.mmap(file.fileno(), 0)
    assert settle(inbox, clock) == []
    view.close()
    assert names(inbox.scan()) == ["a.jsonl"]


def test_a_reader_does_not_keep_a_file_from_being_taken(paths: Paths, inbox: Inbox, clock: Clock) -> None:
    with drop(paths, "a.jsonl").open("rb"):
        assert names(settle(inbox, clock)) == ["a.jsonl"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_known_suffixes_are_taken_in_any_case(paths: Paths, inbox: Inbox, clock: Clock, suffix: str) -> None:
    drop(paths, f"a{suffix}")
    drop(paths, f"B{suffix.upper()}")
    found = settle(inbox, clock)
    assert {candidate.suffix for candidate in found} == {suffix}
    assert len(found) == 2


@pytest.mark.parametrize(
    "name",
    [
        *(".a.jsonl.Xy12ab", "a.jsonl.part", "a.jsonl.partial", "a.jsonl.tmp", "a.jsonl.crdownload"),
        *("a.jsonl.filepart", ".a.jsonl.swp", "a.jsonl~", ".a.jsonl", "4913", "#a.jsonl#", "~$a.csv"),
        *(".~lock.a.csv#", ".#a.jsonl", "a.jsonl.TMP"),
    ],
)
def test_unfinished_copies_and_editor_droppings_are_left_alone_in_silence(
    paths: Paths, inbox: Inbox, clock: Clock, name: str
) -> None:
    drop(paths, name)
    assert settle(inbox, clock) == []
    assert is_temporary(name)
    assert inbox.problems == {}
    assert not inbox.settling()


def test_an_unknown_suffix_is_reported_once_and_left_in_place(
    paths: Paths, inbox: Inbox, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    path = drop(paths, "notes.docx")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert settle(inbox, clock) == []
    assert len(caplog.records) == 1
    assert "unknown suffix" in inbox.problems["notes.docx"]
    assert path.exists()
    path.unlink()
    inbox.scan()
    assert inbox.problems == {}


def make_symlink(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def make_dangling_symlink(path: Path) -> None:
    path.symlink_to("nowhere")


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def make_folder(path: Path) -> None:
    path.mkdir()
    (path / "part-0.jsonl").write_text("{}\n", encoding="utf-8")


def make_hard_link(path: Path) -> None:
    foreign = path.parent.parent / "foreign.jsonl"
    foreign.write_text("{}\n", encoding="utf-8")
    path.hardlink_to(foreign)


@pytest.mark.parametrize(
    "make", [make_symlink, make_dangling_symlink, make_fifo, make_socket, make_folder, make_hard_link]
)
def test_what_is_not_a_plain_file_of_its_own_is_reported_and_left_in_place(
    paths: Paths, inbox: Inbox, clock: Clock, make: object
) -> None:
    assert callable(make)
    path = paths.inbox / "a.jsonl"
    make(path)
    assert settle(inbox, clock) == []
    assert list(inbox.problems) == ["a.jsonl"]
    assert os.path.lexists(path)
    assert not inbox.settling()


def test_a_folder_behind_a_symbolic_link_is_not_entered(
    paths: Paths, inbox: Inbox, clock: Clock, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.jsonl").write_text("{}\n", encoding="utf-8")
    (paths.inbox / "link").symlink_to(tmp_path / "elsewhere")
    assert settle(inbox, clock) == []
    assert "symbolic link" in inbox.problems["link"]


def test_sub_folders_are_tags_and_high_and_low_priorities(paths: Paths, inbox: Inbox, clock: Clock) -> None:
    for name in ("n.jsonl", "low/l.jsonl", "high/team/h.jsonl", "team/high/t.jsonl"):
        drop(paths, name)
    (paths.inbox / "empty").mkdir()
    found = settle(inbox, clock)
    assert [(item.name, item.priority, item.tags) for item in found] == [
        ("h.jsonl", "high", ("team",)),
        ("n.jsonl", "normal", ()),
        ("t.jsonl", "normal", ("team", "high")),
        ("l.jsonl", "low", ()),
    ]
    assert (paths.inbox / "empty").is_dir()


def test_its_own_folders_are_not_looked_into(paths: Paths, inbox: Inbox, clock: Clock) -> None:
    for folder in ("processing", "done", "rejected", "failed", "skipped"):
        drop(paths, f"{folder}/a.jsonl")
    drop(paths, "team/done/b.jsonl")
    assert names(settle(inbox, clock)) == ["b.jsonl"]


def test_files_come_in_the_order_first_seen_whatever_their_times(
    paths: Paths, inbox: Inbox, clock: Clock
) -> None:
    os.utime(drop(paths, "z.jsonl"), (2_000_000_000, 2_000_000_000))
    inbox.scan()
    os.utime(drop(paths, "b.jsonl"), (0, 0))
    os.utime(drop(paths, "a.jsonl"), (1, 1))
    assert names(settle(inbox, clock)) == ["z.jsonl", "a.jsonl", "b.jsonl"]


def test_a_missing_inbox_is_told_and_forgiven(
    paths: Paths, inbox: Inbox, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    aside = paths.base / "unmounted"
    paths.inbox.rename(aside)
    with caplog.at_level(logging.WARNING):
        assert inbox.scan() == inbox.scan() == []
    assert len(caplog.records) == 1
    assert inbox.trouble is not None and "No such file" in inbox.trouble
    paths.inbox.write_text("not a folder", encoding="utf-8")
    assert inbox.scan() == []
    assert inbox.trouble is not None and "Not a directory" in inbox.trouble
    paths.inbox.unlink()
    aside.rename(paths.inbox)
    drop(paths, "a.jsonl")
    assert names(settle(inbox, clock)) == ["a.jsonl"]
    assert inbox.trouble is None


def test_ten_thousand_small_files_are_all_found(paths: Paths, inbox: Inbox, clock: Clock) -> None:
    for number in range(10_000):
        (paths.inbox / f"{number:05d}.jsonl").touch()
    assert names(settle(inbox, clock)) == [f"{number:05d}.jsonl" for number in range(10_000)]


def candidate_of(paths: Paths, inbox: Inbox, clock: Clock) -> Candidate:
    (candidate,) = settle(inbox, clock)
    return candidate


def test_a_private_copy_has_the_bytes_and_their_hash(
    paths: Paths, inbox: Inbox, clock: Clock, tmp_path: Path
) -> None:
    path = drop(paths, "a.jsonl", "hello\n" * 1000)
    copy = tmp_path / "copy"
    assert copy_privately(candidate_of(paths, inbox, clock), copy) == durable.sha256_file(path)
    assert copy.read_bytes() == path.read_bytes()


def test_whoever_waits_hears_again_and_again_that_a_large_file_is_being_copied(
    paths: Paths, inbox: Inbox, clock: Clock, tmp_path: Path
) -> None:
    drop(paths, "a.jsonl", "x" * (3 * durable.COPY_CHUNK_BYTES - 1) + "\n")
    candidate, copy = candidate_of(paths, inbox, clock), tmp_path / "copy"
    sizes: list[int] = []
    copy_privately(candidate, copy, lambda: sizes.append(copy.stat().st_size))
    assert sizes == [0, durable.COPY_CHUNK_BYTES, 2 * durable.COPY_CHUNK_BYTES]


def test_a_file_that_changed_since_the_scan_is_not_taken(
    paths: Paths, inbox: Inbox, clock: Clock, tmp_path: Path
) -> None:
    path = drop(paths, "a.jsonl")
    candidate = candidate_of(paths, inbox, clock)
    path.write_text("{}{}\n", encoding="utf-8")
    assert copy_privately(candidate, tmp_path / "copy") is None


def test_a_file_that_is_opened_for_writing_since_the_scan_is_not_taken(
    paths: Paths, inbox: Inbox, clock: Clock, tmp_path: Path
) -> None:
    path = drop(paths, "a.jsonl")
    candidate = candidate_of(paths, inbox, clock)
    with path.open("a", encoding="utf-8"):
        assert copy_privately(candidate, tmp_path / "copy") is None


@pytest.mark.parametrize("make", [make_symlink, make_fifo, None])
def test_a_file_swapped_for_something_else_since_the_scan_is_not_followed(
    paths: Paths, inbox: Inbox, clock: Clock, tmp_path: Path, make: object
) -> None:
    path = drop(paths, "a.jsonl")
    candidate = candidate_of(paths, inbox, clock)
    path.unlink()
    if callable(make):
        make(path)
    assert copy_privately(candidate, tmp_path / "copy") is None


HOSTILE_NAMES = [
    *(b"new\nline.jsonl", b"esc\x1b[31mred.jsonl", b"invalid\xff\xfe.jsonl", b"-rf.jsonl", b"..jsonl"),
    *(b"a" * 249 + b".jsonl", b"percent%0A.jsonl", b"per\x01cent%41.jsonl", b"trailing .jsonl"),
    *("nfc\u00e9.jsonl".encode(), "nfde\u0301.jsonl".encode(), "rtl\u202egnp.jsonl".encode()),
    *("emoji\U0001f600.jsonl".encode(), "é".encode() * 124 + b".jsonl", b"\x07.jsonl", b"$(reboot).jsonl"),
    *(b"a'b\"c.jsonl", b"a b.jsonl", b"CASE.JSONL", b"case.jsonl", b"\\..\\x.jsonl"),
]


def test_hostile_names_are_found_shown_safely_and_lead_back_to_their_files(
    paths: Paths, inbox: Inbox, clock: Clock
) -> None:
    for name in HOSTILE_NAMES:
        with open(os.path.join(os.fsencode(paths.inbox), name), "wb") as file:
            file.write(b"{}\n")
    found = settle(inbox, clock)
    assert {os.fsencode(candidate.path.name) for candidate in found} == {
        name for name in HOSTILE_NAMES if not name.startswith(b".")
    }
    for candidate in found:
        assert candidate.name.isprintable()
        assert candidate.name.encode("utf-8")
        assert candidate.relative_path.isascii() and candidate.relative_path.isprintable()
        assert path_from_relative(paths.inbox, candidate.relative_path) == candidate.path


@given(st.binary(min_size=1, max_size=40).filter(lambda raw: b"/" not in raw and b"\0" not in raw))
def test_any_name_is_shown_printable(raw: bytes) -> None:
    shown = display_name(os.fsdecode(raw))
    assert shown.isprintable()
    assert not shown.startswith("-")
    shown.encode("utf-8")


@given(st.text(min_size=1, max_size=300), st.sampled_from(SUFFIXES), st.integers(0, 3))
def test_a_place_is_a_free_short_name_that_keeps_its_suffix(stem: str, suffix: str, taken: int) -> None:
    name = display_name(stem.replace("/", "_").replace("\0", "_") + suffix)
    used: set[str] = set()
    for _ in range(taken + 1):
        place = place_name(name, suffix, 7, used.__contains__)
        assert place not in used
        assert place.endswith(suffix)
        longest = f".{place}{max(COMPANIONS, key=len)}.partial"
        assert len(longest.encode()) <= 255
        used.add(place)


def test_a_good_name_is_its_own_place_and_a_taken_one_gets_a_number() -> None:
    assert place_name("tickets.jsonl.gz", ".jsonl.gz", 43, set().__contains__) == "tickets.jsonl.gz"
    taken = {"tickets.jsonl", "tickets.000043.jsonl"}
    assert place_name("tickets.jsonl", ".jsonl", 43, taken.__contains__) == "tickets.000044.jsonl"


def cut_points() -> Iterator[str]:
    for shift in range(4):
        yield string.ascii_letters[:shift] + "%C3%A9" * 100
        yield string.ascii_letters[:shift] + "é" * 200


@pytest.mark.parametrize("stem", list(cut_points()))
def test_a_long_name_is_cut_between_characters_and_escapes(stem: str) -> None:
    place = place_name(stem + ".jsonl", ".jsonl", 1, set().__contains__)
    kept = place.removesuffix(".jsonl")
    assert stem.startswith(kept)
    assert len(place.encode()) <= MAX_PLACE_BYTES
    last = kept[-3:]
    assert "%" not in kept or (last.startswith("%") and len(last) == 3)


@pytest.mark.config_key("inbox.unfinished_line_seconds")
@pytest.mark.parametrize("patience", [30.0, 60.0])
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_a_file_that_ends_in_the_middle_of_a_line_stands_still_longer(
    name: str, patience: float, paths: Paths, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    inbox = Inbox(paths, InboxConfig(unfinished_line_seconds=patience, poll_seconds=100.0), clock)
    drop(paths, name, '{"text": "half a rec')
    assert settle(inbox, clock) == []
    assert inbox.settling()
    assert inbox.seconds_to_next_look() == patience - 3.0
    clock.now += patience - 3.1
    assert inbox.scan() == []
    clock.now += 0.2
    assert [names(inbox.scan()) for _ in range(3)] == [[name]] * 3
    assert caplog.text.count("ends in the middle of a line and is taken as it is") == 1


def test_a_line_that_is_finished_in_time_is_waited_for_as_usual(
    paths: Paths, inbox: Inbox, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    path = drop(paths, "a.jsonl", '{"text": "half a rec')
    assert settle(inbox, clock) == []
    path.write_text('{"text": "half a record"}\n', encoding="utf-8")
    assert names(settle(inbox, clock)) == ["a.jsonl"]
    assert caplog.text == ""


@pytest.mark.parametrize("name", ["a.json", "a.jsonl.gz", "a.parquet"])
def test_a_file_that_is_not_made_of_lines_needs_no_last_one(
    name: str, paths: Paths, inbox: Inbox, clock: Clock
) -> None:
    drop(paths, name, "[]")
    drop(paths, "empty.jsonl", "")
    assert names(settle(inbox, clock)) == [name, "empty.jsonl"]
