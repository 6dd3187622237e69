"""The files that rows are made from: which there are, whether they changed, and the documents among them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

import durable
from config import Paths
from errors import IntegrityError
from training.jobs import JOB_ID

_YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # a config in 1 ms instead of 10


def run_ids(paths: Paths) -> list[str]:
    """Return the names of the run folders by the numbers of their jobs."""
    names = (folder.name for folder in paths.runs.iterdir() if JOB_ID.fullmatch(folder.name))
    return sorted(names, key=lambda name: int(name.partition("-")[0]))


def fingerprint(paths: Paths, job_id: str) -> str:
    """Return sizes and times of the files that a row is made from; the same ones give the same row."""
    run = paths.run(job_id)
    return " ".join(
        _size_and_time(path)
        for path in (run.job_file, run.config_file, run.events, run.report, run.trainer_log)
    )


def read_config(path: Path) -> dict[str, Any] | None:
    """Return a run's configuration as it lies there: no environment or later default changes it."""
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), Loader=_YAML_LOADER)  # a safe loader
    except (FileNotFoundError, UnicodeDecodeError, yaml.YAMLError):
        return None
    if not isinstance(document, dict):
        return None
    return {name: section for name, section in document.items() if name != "ledger"}


def read_report(path: Path) -> dict[str, Any] | None:
    """Return the report card of a run's file, or None when there is none to be read."""
    try:
        document = durable.read_json(path)
    except (FileNotFoundError, IntegrityError):
        return None
    return document if isinstance(document, dict) else None


def section(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a part of a document; empty when it has none of that name."""
    part = document.get(name)
    return part if isinstance(part, dict) else {}


def integer(document: Mapping[str, Any], name: str) -> int | None:
    """Return a whole number of a document, or None when it has none of that name."""
    value = document.get(name)
    return value if isinstance(value, int) else None


def _size_and_time(path: Path) -> str:
    try:
        facts = path.stat()
    except FileNotFoundError:
        return "-"
    return f"{facts.st_size}:{facts.st_mtime_ns}"
