"""What every command shares: the base folder it works on, and where it prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from config import Config, Paths, load_config
from errors import UsageError
from monitoring.training_status import Reading, read_status

console = Console(highlight=False)
complaints = Console(stderr=True, highlight=False)

Base = Annotated[Path, typer.Option("--base", "-b", help="The base folder; by default this one.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", "-s", help="Override a key: train.learning_rate=1e-3.")
]
Reason = Annotated[str, typer.Option("--reason", "-r", help="Kept with the command and shown in the status.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for a program to read.")]
HERE = Path()


def open_base(base: Path, settings: list[str] | None = None) -> tuple[Paths, Config]:
    """Return the paths and the configuration of a base folder; UsageError when there is none."""
    if not base.is_dir():
        raise UsageError(
            f"{base}: found no such folder, expected a base folder; make it or give another --base"
        )
    return Paths(base.resolve()), load_config(base, settings or [])


def known_status(paths: Paths) -> Reading:
    """Return the status of a base folder; UsageError when no daemon has run there."""
    reading = read_status(paths)
    if reading is None:
        raise UsageError(f"{paths.base}: no daemon has run here yet; start one with: trainbox run")
    return reading


def number(value: float | None) -> str:
    """Show a number that may not be known."""
    return "-" if value is None else f"{value:.3f}"
