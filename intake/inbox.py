"""The inbox: finds dropped files that are complete, and makes private copies of them.

The folder itself is the queue; nothing is remembered across a restart. A name is data: it is shown escaped
and never used to build a path outside the five folders. Making a job of a copy is left to training.claims.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import signal
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import quote_from_bytes, unquote_to_bytes

import durable
from config import InboxConfig, Paths

logger = logging.getLogger(__name__)

SUFFIXES = (".jsonl.gz", ".jsonl", ".json", ".csv", ".parquet")
LINE_SUFFIXES = (".jsonl", ".csv")
"""Files whose last byte tells whether they may have been cut short."""
OWN_FOLDERS = frozenset({"processing", "done", "rejected", "failed", "skipped"})
COMPANIONS = (".report.json", ".report.txt", ".refused.jsonl")
"""What is added to a file's name for the files that lie beside it."""
MAX_PLACE_BYTES = 200
"""Longest name given to a file; leaves room in 255 bytes for a number, a companion and a temporary name."""

_TEMPORARY_SUFFIXES = (".part", ".partial", ".tmp", ".crdownload", ".filepart", ".swp", ".swx", ".download")
_EDITOR_DROPPING = re.compile(r"#.*#|4913")
_ESCAPE_OR_CHARACTER = re.compile(r"%[0-9A-F]{2}|.", re.DOTALL)

Priority = Literal["high", "normal", "low"]
_PRIORITIES: tuple[Priority, ...] = ("high", "normal", "low")


class Signature(NamedTuple):
    """What stands still when nobody changes a file."""

    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    device: int

    @classmethod
    def of(cls, status: os.stat_result) -> Signature:
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A complete file in the inbox."""

    path: Path
    relative_path: str
    """Path below the inbox, percent-encoded from its raw bytes."""
    name: str
    """The file's name, escaped for display."""
    suffix: str
    tags: tuple[str, ...]
    priority: Priority
    signature: Signature


@dataclass(slots=True)
class _Seen:
    """What is known of a file since it was first seen."""

    number: int
    signature: Signature
    since: float
    due: float
    """When it may be taken if it does not change before."""
    is_settled: bool = False
    is_told: bool = False
    """That it ends in the middle of a line has been logged."""


class Inbox:
    """Looks through the inbox; only `scan` touches the disk, the rest answers from the last look."""

    def __init__(
        self, paths: Paths, config: InboxConfig, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder = paths.inbox
        self._config = config
        self._clock = clock
        self._seen: dict[Path, _Seen] = {}
        self._seen_count = 0
        self.problems: dict[str, str] = {}
        """Things left in place, by their escaped path, with the reason."""
        self.trouble: str | None = None
        """Why the inbox as a whole cannot be read, or None."""

    def scan(self) -> list[Candidate]:
        """Look once and return the complete files: high, normal, low, each in the order first seen."""
        problems: dict[str, str] = {}
        began_at = self._clock()
        try:
            found = sorted(self._walk(problems), key=lambda candidate: os.fsencode(candidate.path))
        except OSError as error:
            self._set_trouble(f"{self._folder}: {error.strerror}; make the folder readable again")
            self._seen.clear()
            return []
        self._set_trouble(None)
        self._forget_all_but(found)
        # One time for all of them: what is seen together settles together, so that priorities hold.
        ended_at = self._clock()
        settled = [one for one in found if self._observe(one, problems, began_at, ended_at)]
        self._report(problems)
        return sorted(
            settled, key=lambda item: (_PRIORITIES.index(item.priority), self._seen[item.path].number)
        )

    def dropped(self) -> list[Candidate]:
        """Return the files that lie there now, complete or not; nothing is remembered and nothing logged."""
        try:
            return sorted(self._walk({}), key=lambda candidate: os.fsencode(candidate.path))
        except OSError:
            return []

    def settling(self) -> bool:
        """Tell whether a file is there that is not known to be complete yet."""
        return any(not seen.is_settled for seen in self._seen.values())

    def seconds_to_next_look(self) -> float:
        """Return when the next scan is worth while: as soon as a file may have settled."""
        now = self._clock()
        due = [seen.due - now for seen in self._seen.values() if not seen.is_settled]
        return min([seconds for seconds in due if seconds > 0] + [self._config.poll_seconds])

    def _walk(self, problems: dict[str, str]) -> Iterator[Candidate]:
        """Yield the plain files with known suffixes; raise OSError when the inbox itself is unreadable."""
        device = self._folder.stat().st_dev
        folders: list[tuple[Path, tuple[str, ...]]] = [(self._folder, ())]
        while folders:
            folder, parts = folders.pop()
            try:
                with os.scandir(folder) as listing:
                    entries = list(listing)
            except OSError as error:
                if folder == self._folder:
                    raise
                problems[_show(folder, self._folder)] = f"folder cannot be read: {error.strerror}"
                continue
            for entry in entries:
                if is_temporary(entry.name) or (not parts and entry.name in OWN_FOLDERS):
                    continue
                path = Path(entry.path)
                try:
                    status = path.lstat()
                except FileNotFoundError:
                    continue
                reason = _reason_to_leave(entry.name, status, device)
                if reason is not None:
                    problems[_show(path, self._folder)] = reason
                elif stat.S_ISDIR(status.st_mode):
                    folders.append((path, (*parts, entry.name)))
                else:
                    yield self._candidate(path, parts, status)

    def _candidate(self, path: Path, parts: tuple[str, ...], status: os.stat_result) -> Candidate:
        priority: Priority = "normal"
        if parts and parts[0] in ("high", "low"):
            priority = "high" if parts[0] == "high" else "low"
            parts = parts[1:]
        return Candidate(
            path=path,
            relative_path=quote_from_bytes(os.fsencode(path.relative_to(self._folder))),
            name=display_name(path.name),
            suffix=_suffix(path.name),
            tags=tuple(display_name(part) for part in parts),
            priority=priority,
            signature=Signature.of(status),
        )

    def _forget_all_but(self, found: list[Candidate]) -> None:
        there = {candidate.path for candidate in found}
        self._seen = {path: seen for path, seen in self._seen.items() if path in there}

    def _observe(
        self, candidate: Candidate, problems: dict[str, str], began_at: float, ended_at: float
    ) -> bool:
        """Tell whether a file has stood still long enough, over two scans, with no writer.

        It was looked at between `began_at` and `ended_at`.
        """
        seen = self._seen.get(candidate.path)
        if seen is None:
            self._seen_count += 1
        if seen is None or seen.signature != candidate.signature:
            number = self._seen_count if seen is None else seen.number
            due = ended_at + self._config.settle_seconds
            self._seen[candidate.path] = _Seen(number, candidate.signature, ended_at, due)
            return False
        seen.is_settled = began_at >= seen.due
        if not seen.is_settled:
            return False
        reason = self._reason_it_cannot_be_taken(candidate)
        if reason is not None:
            problems[_show(candidate.path, self._folder)] = reason
            return False
        seen.is_settled = not _is_open_for_writing(candidate.path) and self._has_whole_lines(candidate, seen)
        return seen.is_settled

    def _has_whole_lines(self, candidate: Candidate, seen: _Seen) -> bool:
        """Tell whether a file of lines ends with one, or has stood still long enough to end without."""
        if candidate.suffix not in LINE_SUFFIXES or _ends_with_a_line(candidate.path):
            return True
        patient_until = seen.since + self._config.unfinished_line_seconds
        if self._clock() < patient_until:
            seen.due = patient_until
            return False
        if not seen.is_told:
            seen.is_told = True
            self._tell_unfinished(candidate)
        return True

    def _tell_unfinished(self, candidate: Candidate) -> None:
        logger.warning(
            "inbox/%s ends in the middle of a line and is taken as it is: it stood still for %g s "
            "(inbox.unfinished_line_seconds)",
            *(candidate.name, self._config.unfinished_line_seconds),
        )

    @staticmethod
    def _reason_it_cannot_be_taken(candidate: Candidate) -> str | None:
        if not os.access(candidate.path, os.R_OK, effective_ids=True):
            return "cannot be read; give the daemon's user permission to read it"
        if not os.access(candidate.path.parent, os.W_OK | os.X_OK, effective_ids=True):
            return "its folder cannot be changed; give the daemon's user permission to move files out of it"
        return None

    def _report(self, problems: dict[str, str]) -> None:
        for path, reason in problems.items():
            if self.problems.get(path) != reason:
                logger.warning("Left inbox/%s in place: %s", path, reason)
        self.problems = problems

    def _set_trouble(self, trouble: str | None) -> None:
        if trouble is not None and trouble != self.trouble:
            logger.warning("Cannot read the inbox: %s", trouble)
        elif trouble is None and self.trouble is not None:
            logger.info("The inbox can be read again")
        self.trouble = trouble


def copy_privately(
    candidate: Candidate, destination: Path, on_progress: Callable[[], None] = lambda: None
) -> str | None:
    """Copy a candidate to the new file `destination`, synced, and return the sha256 of the copy.

    Returns None, with a copy that must be thrown away, when the file vanished or was changed meanwhile.
    `on_progress` is called again and again while it is copied.
    """
    try:
        descriptor = _open_quietly(candidate.path)
    except OSError as error:
        logger.info("Could not open inbox/%s, will try again: %s", candidate.relative_path, error.strerror)
        return None
    try:
        if Signature.of(os.fstat(descriptor)) != candidate.signature:
            return None
        sha256, _ = durable.copy_hashed(descriptor, destination, on_progress)
        is_whole = Signature.of(os.fstat(descriptor)) == candidate.signature and not _has_writer(descriptor)
        return sha256 if is_whole else None
    finally:
        os.close(descriptor)


def linked_files(inbox: Path) -> Iterator[Path]:
    """Yield the dropped files that bear another name as well; such a file is never taken."""
    for folder, folders, names in os.walk(inbox):
        if folder == str(inbox):
            folders[:] = [name for name in folders if name not in OWN_FOLDERS]
        for name in names:
            path = Path(folder, name)
            with contextlib.suppress(FileNotFoundError):
                status = path.lstat()
                if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
                    yield path


def is_temporary(name: str) -> bool:
    """Tell whether a name is one that copy programs and editors give to what is not finished."""
    return (
        name.startswith((".", "~"))
        or name.endswith("~")
        or name.lower().endswith(_TEMPORARY_SUFFIXES)
        or _EDITOR_DROPPING.fullmatch(name) is not None
    )


def display_name(name: str) -> str:
    """Return `name` as it is when it is printable, else percent-escaped; safe in a terminal and in JSON."""
    if name.isprintable() and not name.startswith("-"):
        return name
    escaped = "".join(_escape(character) for character in name)
    return f"%2D{escaped[1:]}" if escaped.startswith("-") else escaped


def place_name(name: str, suffix: str, number: int, is_taken: Callable[[str], bool]) -> str:
    """Return a safe and free file name for a file called `name` (escaped for display).

    It is the name itself when that is free and short enough. A name that is taken gets the first free number
    from `number` on before its suffix: ``tickets.000043.jsonl``.
    """
    stem = _cut(name[: len(name) - len(suffix)], MAX_PLACE_BYTES - len(suffix))
    place = stem + name[len(name) - len(suffix) :]
    while is_taken(place):
        place = f"{stem}.{number:06d}{suffix}"
        number += 1
    return place


def path_from_relative(inbox: Path, relative_path: str) -> Path:
    """Return the path that a candidate's `relative_path` stands for."""
    return inbox / os.fsdecode(unquote_to_bytes(relative_path))


def _suffix(name: str) -> str:
    return next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), "")


def _reason_to_leave(name: str, status: os.stat_result, device: int) -> str | None:
    """Return why an entry is not taken and not entered, or None."""
    mode = status.st_mode
    if stat.S_ISLNK(mode):
        return "is a symbolic link; copy the file itself"
    if status.st_dev != device:
        return "lies on another file system mounted here; copy it"
    if stat.S_ISDIR(mode):
        return "is a folder with the name of a file; drop the files inside it" if _suffix(name) else None
    if not stat.S_ISREG(mode):
        return "is not a file; only files are taken"
    if status.st_nlink > 1:
        return "has other hard links, so others can change it unseen; copy it"
    if not _suffix(name):
        return f"unknown suffix; known are {', '.join(sorted(SUFFIXES))}"
    return None


def _open_quietly(path: Path) -> int:
    """Open for reading without following a link, waiting for a pipe, or handing it to a child."""
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def _is_open_for_writing(path: Path) -> bool:
    try:
        descriptor = _open_quietly(path)
    except OSError:
        return True  # vanished or replaced; the next scan tells
    try:
        return _has_writer(descriptor)
    finally:
        os.close(descriptor)


def _ends_with_a_line(path: Path) -> bool:
    try:
        descriptor = _open_quietly(path)
    except OSError:
        return False  # vanished or replaced; the next scan tells
    try:
        size = os.fstat(descriptor).st_size
        return size == 0 or os.pread(descriptor, 1, size - 1) == b"\n"
    finally:
        os.close(descriptor)


def _has_writer(descriptor: int) -> bool:
    """Tell whether anybody holds the file open for writing, a writer through mmap included.

    A read lease is granted only where nobody does. File systems without leases refuse with another error
    and the question stays open. The signal that a broken lease sends is one that is ignored by default.
    """
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def _show(path: Path, inbox: Path) -> str:
    return "/".join(display_name(part) for part in path.relative_to(inbox).parts)


def _escape(character: str) -> str:
    if character.isprintable() and character != "%":
        return character
    return "".join(f"%{byte:02X}" for byte in os.fsencode(character))


def _cut(text: str, limit_bytes: int) -> str:
    """Shorten to at most so many bytes of UTF-8, never inside a character or an escape."""
    kept, size = [], 0
    for piece in _ESCAPE_OR_CHARACTER.findall(text):
        size += len(piece.encode())
        if size > limit_bytes:
            break
        kept.append(piece)
    return "".join(kept)
