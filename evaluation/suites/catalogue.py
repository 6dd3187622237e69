"""Which suites there are: those that lie in this folder, and any file of the user's."""

from __future__ import annotations

from pathlib import Path

from errors import UsageError
from evaluation.suites.reading import Suite, read_suite

_HERE = Path(__file__).parent
_TITLES = {
    "everyday_facts": "Everyday knowledge and arithmetic, answered in one word or number",
    "everyday_formats": "Everyday extracting, sorting and formatting, answered in a given form",
}
_SUFFIX = ".jsonl"


def suite_names() -> tuple[str, ...]:
    """Return the names of the suites that come with trainbox."""
    return tuple(_TITLES)


def load_suite(name_or_path: str | Path) -> Suite:
    """Return a suite by its name, or the one in a JSONL file.

    Raises UsageError when there is none, or when a line of it is no item.
    """
    name = str(name_or_path)
    if name in _TITLES:
        file = _HERE / f"{name}{_SUFFIX}"
        return read_suite(file.read_bytes(), name=name, title=_TITLES[name], place=file.name)
    path = Path(name_or_path)
    if path.suffix != _SUFFIX or not path.is_file():
        raise UsageError(
            f"{name}: found no such suite, expected one of {', '.join(suite_names())}, or the path of a "
            f"{_SUFFIX} file with one item a line"
        )
    return read_suite(path.read_bytes(), name=path.stem, title=path.name, place=str(path))
