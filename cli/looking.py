"""The command that shows what the daemon is doing."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Annotated

import typer
from rich.live import Live
from rich.table import Table
from rich.text import Text

import durable
from cli.terminal import HERE, AsJson, Base, console, known_status, number, open_base
from config import Paths, load_config
from monitoring.training_status import Reading, TrainingStatus

WATCH_SECONDS = 1.0


def status(
    base: Base = HERE,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep showing it until interrupted.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what the daemon is doing, and whether it lives."""
    paths, _ = open_base(base)
    if as_json:
        sys.stdout.buffer.write(durable.to_json(known_status(paths).status.model_dump(mode="json")))
        return
    if not watch:
        console.print(_status_table(paths))
    elif console.is_terminal:
        with Live(_status_table(paths), console=console, auto_refresh=False) as live:
            for table in _status_tables(paths):
                live.update(table, refresh=True)
    else:
        for table in _status_tables(paths):
            console.print(table)


def list_checkpoints(
    job: Annotated[str | None, typer.Argument(help="A job's number or name; by default the newest.")] = None,
    base: Base = HERE,
    as_json: AsJson = False,
) -> None:
    """List the checkpoints of a job with their scores, newest first; * marks the best."""
    from training.checkpoints import describe
    from training.jobs import JobStore

    paths, _ = open_base(base)
    store = JobStore(paths)
    wanted = store.find(job)
    run = store.run(wanted)
    entries = describe(run.folder, load_config(run.folder).scoring.selection)
    if as_json:
        document = {"job_id": wanted.job_id, "checkpoints": [entry.model_dump() for entry in entries]}
        sys.stdout.buffer.write(durable.to_json(document))
        return
    table = Table("", "step", "epoch", "held-out loss", "training loss", "score", "parts", "MB", "made at")
    for entry in entries:
        parts = {name: value for name, value in (entry.parts or {}).items() if value is not None}
        table.add_row(
            "*" if entry.is_best else "",
            f"{entry.step}{' (latest)' if entry.is_latest else ''}",
            f"{entry.epoch:.2f}",
            *(number(value) for value in (entry.eval_loss, entry.train_loss, entry.score)),
            ", ".join(f"{name} {value:.3f}" for name, value in parts.items()) or "-",
            f"{entry.size_bytes / 1e6:.1f}",
            f"{entry.created_at.astimezone():%Y-%m-%d %H:%M}",
        )
    console.print(f"Job {wanted.job_id}: {wanted.name}", markup=False)
    console.print(table if entries else "No checkpoint yet.")


def _status_table(paths: Paths) -> Table:
    """Draw the status for a person; what is not known is left out."""
    reading = known_status(paths)
    status = reading.status
    table = Table.grid(padding=(0, 2))
    life = "running" if reading.is_running else "not running"
    if reading.is_stale:
        life = (
            f"STALE: last heard of at {status.heartbeat_at.astimezone():%Y-%m-%d %H:%M:%S}, pid {status.pid}"
        )
    table.add_row("daemon", Text(life, "red" if reading.is_stale else "green" if reading.is_running else ""))
    rows: list[tuple[str, str | None]] = [
        ("state", status.state),
        ("reason", _reason_of_pause(status)),
        *_alerts(reading),
        ("file", status.current_file),
        ("job", status.job_id),
        ("step", _of(status.batch_step, status.batch_total_steps)),
        ("epoch", None if status.epoch is None else f"{status.epoch:.2f}"),
        ("loss", None if status.loss is None else f"{status.loss:.4f}"),
        ("held-out loss", None if status.validation_loss is None else f"{status.validation_loss:.4f}"),
        ("speed", None if status.tokens_per_sec is None else f"{status.tokens_per_sec:.0f} tokens/s"),
        ("time left", None if status.eta_seconds is None else f"{status.eta_seconds:.0f} s"),
        ("version", status.version),
        ("queue", ", ".join(status.queue.next_files) or None),
        (
            "left in place",
            ", ".join(f"{name}: {why}" for name, why in status.queue.left_in_place.items()) or None,
        ),
        ("page", _monitor_url(paths) if reading.is_running else None),
        ("no page", status.monitor_trouble),
        ("message", status.message),
        ("ledger", status.ledger_trouble),
        ("error", status.error_message),
    ]
    for name, value in rows:
        if value is not None:
            table.add_row(name, Text(value))
    return table


def _reason_of_pause(status: TrainingStatus) -> str | None:
    control = status.control
    if status.state != "paused" or control is None or control.command != "pause":
        return None
    return control.reason


def _alerts(reading: Reading) -> Iterator[tuple[str, str]]:
    """Yield what alarms, the gravest first, with what to do; of a daemon that is gone, what did at last."""
    is_known = reading.is_running and not reading.is_stale
    for alert in reading.status.active_alerts:
        name = alert.severity if is_known else f"{alert.severity} at last"
        yield name, f"{alert.message}. {alert.recommendation}"


def _monitor_url(paths: Paths) -> str | None:
    """Return where the monitor is, or None while it is not served."""
    if not paths.monitor_address.is_file():
        return None
    url: str = durable.read_json(paths.monitor_address)["url"]
    return url


def _status_tables(paths: Paths) -> Iterator[Table]:
    """Yield the status again and again, until the person interrupts."""
    while True:
        yield _status_table(paths)
        time.sleep(WATCH_SECONDS)


def _of(done: int | None, total: int | None) -> str | None:
    return None if done is None or total is None else f"{done} of {total}"
