"""Which suites there are: those that lie in this folder, seeded puzzles, and any file of the user's."""

from __future__ import annotations

from pathlib import Path

import orjson

from errors import UsageError
from evaluation.suites.reading import Suite, read_suite
from evaluation.syllo.generating import Level, make_puzzles
from evaluation.syllo.wording import answer_of, prompt_of

_HERE = Path(__file__).parent
_TITLES = {
    "everyday_facts": "Everyday knowledge and arithmetic, answered in one word or number",
    "everyday_formats": "Everyday extracting, sorting and formatting, answered in a given form",
}
_PUZZLES: dict[str, Level] = {f"syllo_{level}_100": level for level in ("easy", "medium", "hard")}
_PUZZLE_COUNT = 100
_PUZZLE_SEED = 1
_SUFFIX = ".jsonl"
DEFAULT_SUITES = tuple(_TITLES)
"""Quick ones: a minute or two for a small model on a CPU."""


def suite_names() -> tuple[str, ...]:
    """Return the names of the suites that come with trainbox."""
    return (*_TITLES, *_PUZZLES)


def load_suite(name_or_path: str | Path) -> Suite:
    """Return a suite by its name, or the one in a JSONL file.

    Raises UsageError when there is none, or when a line of it is no item.
    """
    name = str(name_or_path)
    if name in _TITLES:
        file = _HERE / f"{name}{_SUFFIX}"
        return read_suite(file.read_bytes(), name=name, title=_TITLES[name], place=file.name)
    if name in _PUZZLES:
        return read_suite(
            _puzzle_lines(_PUZZLES[name]),
            name=name,
            title=f"Words hidden in syllable tiles, {_PUZZLES[name]}",
            place=name,
        )
    path = Path(name_or_path)
    if path.suffix != _SUFFIX or not path.is_file():
        raise UsageError(
            f"{name}: found no such suite, expected one of {', '.join(suite_names())}, or the path of a "
            f"{_SUFFIX} file with one item a line"
        )
    return read_suite(path.read_bytes(), name=path.stem, title=path.name, place=str(path))


def _puzzle_lines(level: Level) -> bytes:
    """Return the lines of a suite of puzzles: none of its words is in a puzzle for training."""
    puzzles = make_puzzles(_PUZZLE_COUNT, level, seed=_PUZZLE_SEED, split="evaluation")
    return b"".join(
        orjson.dumps(
            {
                "id": puzzle.puzzle_id,
                "level": level,
                "prompt": prompt_of(puzzle),
                "answer": answer_of(puzzle),
                "grader": "syllo",
            },
            option=orjson.OPT_APPEND_NEWLINE,
        )
        for puzzle in puzzles
    )
