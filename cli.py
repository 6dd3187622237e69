"""The `trainbox` command: builds objects, calls one of their methods, prints what came back."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

import durable
from config import Config, Paths, load_config
from errors import TrainboxError, UsageError
from monitoring.training_status import Reading, read_status

app = typer.Typer(
    help="The folder that trains: drop a file into inbox/, get a tested version of your model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console(highlight=False)
complaints = Console(stderr=True, highlight=False)

Base = Annotated[Path, typer.Option("--base", "-b", help="The base folder; by default this one.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", "-s", help="Override a key: train.learning_rate=1e-3.")
]
Reason = Annotated[str, typer.Option("--reason", "-r", help="Kept with the command and shown in the status.")]
HERE = Path()
ACKNOWLEDGE_SECONDS = 10.0
WATCH_SECONDS = 1.0


def main() -> None:
    """Run the command line; exit with 2 when it was asked for what cannot be, 1 on any other trouble."""
    try:
        app()
    except UsageError as error:
        complaints.print(f"trainbox: {error}", markup=False)
        sys.exit(2)
    except TrainboxError as error:
        complaints.print(f"trainbox: {error}", markup=False)
        sys.exit(1)


@app.command()
def run(
    base: Base = HERE,
    until_idle: Annotated[
        bool, typer.Option(help="End when every dropped file has been dealt with.")
    ] = False,
    settings: Settings = None,
) -> None:
    """Run the daemon: watch inbox/ and train what lies there."""
    import daemon

    raise typer.Exit(daemon.run(base, overrides=settings or [], until_idle=until_idle))


@app.command()
def prepare(base: Base = HERE, settings: Settings = None) -> None:
    """Fetch and convert the embedded base model, once."""
    from training.base_model import prepare_base

    paths, _ = _open(base, settings)
    paths.create()
    console.print(f"Base model ready: {prepare_base(paths)}", markup=False)


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="A data file: .jsonl .json .jsonl.gz .csv .parquet")],
    base: Base = HERE,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report card as JSON.")] = False,
    settings: Settings = None,
) -> None:
    """Check a data file as the daemon would, without training: exit 0 usable, 1 refused, 2 usage."""
    from chat_template import ChatTemplate
    from intake.validation import PlanInputs, check_file
    from training.base_model import locate_base
    from training.throughput import last_throughput

    paths, config = _open(base, settings)
    if not file.is_file():
        raise UsageError(f"{file}: found no such file, expected a data file")
    template = ChatTemplate.load(locate_base(paths, config.model), config.model.chat_template_kwargs)
    train = config.train
    plan = PlanInputs(
        batch_records=train.per_device_train_batch_size * train.gradient_accumulation_steps,
        epochs=train.num_train_epochs,
        tokens_per_second=last_throughput(paths, config.model),
    )
    report = check_file(file, config.data, template, seed=train.seed, name=file.name, plan=plan)
    sys.stdout.write(report.to_json() if as_json else report.to_text())
    raise typer.Exit(0 if report.usable else 1)


@app.command()
def status(
    base: Base = HERE,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep showing it until interrupted.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print status/training_status.json.")] = False,
) -> None:
    """Show what the daemon is doing, and whether it lives."""
    paths, _ = _open(base, None)
    if as_json:
        sys.stdout.buffer.write(durable.to_json(_reading(paths).status.model_dump(mode="json")))
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


@app.command()
def pause(base: Base = HERE, reason: Reason = "") -> None:
    """Save an exact checkpoint and free the GPU; stays paused until resumed, also across restarts."""
    _command(base, "pause", reason)


@app.command()
def resume(base: Base = HERE, reason: Reason = "") -> None:
    """Go on from the exact step where it was paused."""
    _command(base, "resume", reason)


@app.command()
def skip(base: Base = HERE, reason: Reason = "") -> None:
    """Give up the current file; it goes to inbox/skipped/."""
    _command(base, "skip", reason)


@app.command()
def stop(base: Base = HERE, reason: Reason = "") -> None:
    """Save and end the daemon; the job goes on at the next start."""
    _command(base, "stop", reason)


@app.command()
def versions(base: Base = HERE) -> None:
    """List every version with its lineage and its verdict; * marks the current one."""
    from training.versions import VersionStore

    paths, _ = _open(base, None)
    store = VersionStore(paths)
    current, known = store.current(), store.list()
    table = Table("", "version", "parent", "file", "steps", "held-out loss", "verdict")
    for version in known:
        facts = version.facts
        table.add_row(
            "*" if current is not None and version.name == current.name else "",
            version.name,
            facts.parent or "base",
            Text(facts.input_name),
            str(facts.steps),
            f"{_number(facts.held_out.before_loss)} → {_number(facts.held_out.after_loss)}",
            facts.decision,
        )
    if not known:
        console.print("No versions yet: drop a file into inbox/ and run the daemon.")
        return
    console.print(table)
    for version in known:
        if version.facts.decision == "hold":
            console.print(f"{version.name} was held: {version.facts.decision_reason}", markup=False)


@app.command()
def promote(
    version: Annotated[str, typer.Argument(help="For instance v0003.")],
    base: Base = HERE,
    reason: Reason = "promoted by hand",
) -> None:
    """Make a version current by hand, a held one too; it stays until a newer one is promoted."""
    from training.versions import VersionStore

    paths, _ = _open(base, None)
    chosen = VersionStore(paths).promote(version, reason, pinned=True)
    console.print(f"Current is now {chosen.name}: {chosen.folder}", markup=False)


@app.command()
def rollback(
    to: Annotated[str | None, typer.Argument(help="By default the version that current continues.")] = None,
    base: Base = HERE,
) -> None:
    """Make an earlier version current; it stays until a newer one is promoted."""
    from training.versions import VersionStore

    paths, _ = _open(base, None)
    chosen = VersionStore(paths).rollback(to)
    console.print(f"Current is now {chosen.name}: {chosen.folder}", markup=False)


@app.command()
def generate(
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="What to ask.")],
    base: Base = HERE,
    model: Annotated[str, typer.Option("--model", "-m", help="current, base, or a version.")] = "current",
    system: Annotated[str | None, typer.Option(help="A system prompt.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer, in tokens.")] = None,
    settings: Settings = None,
) -> None:
    """Ask the current version, any other, or the base model; greedy, so the same prompt has one answer."""
    from training.model import load_generator

    paths, config = _open(base, settings)
    messages = [{"role": "user", "content": prompt}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    generator = load_generator(paths, config, model)
    (answer,) = generator.generate([messages], max_new_tokens=max_new_tokens)
    console.print(answer.text, markup=False, soft_wrap=True)


@app.command()
def doctor(base: Base = HERE) -> None:
    """Look at Python, torch, GPU, disk, permissions and model; one line each, with the remedy."""
    from doctor import examine

    signs = {"ok": ("ok", "green"), "warning": ("warn", "yellow"), "problem": ("FAIL", "red")}
    has_problem = False
    for finding in examine(base):
        sign, colour = signs[finding.level]
        remedy = f" → {finding.remedy}" if finding.remedy else ""
        console.print(
            Text(f"{sign:5}", colour), Text(f"{finding.name:12} {finding.found}{remedy}"), soft_wrap=True
        )
        has_problem |= finding.level == "problem"
    raise typer.Exit(1 if has_problem else 0)


def _open(base: Path, settings: list[str] | None) -> tuple[Paths, Config]:
    if not base.is_dir():
        raise UsageError(
            f"{base}: found no such folder, expected a base folder; make it or give another --base"
        )
    return Paths(base.resolve()), load_config(base, settings or [])


def _command(base: Path, command: str, reason: str) -> None:
    """Write a control file and wait until the daemon has obeyed, if one lives."""
    paths, _ = _open(base, None)
    is_running = _is_running(paths)
    if command == "stop" and not is_running:
        console.print("No daemon runs here; nothing to stop.")
        return
    asked_at = datetime.now(UTC)
    durable.write_bytes(paths.control(command), reason.encode())
    if not is_running:
        console.print(f"No daemon runs here; .{command} waits for the next one.")
        return
    deadline = time.monotonic() + ACKNOWLEDGE_SECONDS
    while time.monotonic() < deadline:
        answer = _reading(paths).status.control
        if answer is not None and answer.command == command and answer.received_at >= asked_at:
            place = "" if answer.step is None else f" at step {answer.step}"
            done = answer.message or ("done" if answer.applied_at else "received, being done")
            console.print(f"{command}: {done}{place}", markup=False)
            return
        time.sleep(0.1)
    console.print(f"The daemon has not answered within {ACKNOWLEDGE_SECONDS:.0f} s; look at: trainbox status")


def _is_running(paths: Paths) -> bool:
    reading = read_status(paths)
    return reading is not None and reading.is_running


def _reading(paths: Paths) -> Reading:
    reading = read_status(paths)
    if reading is None:
        raise UsageError(f"{paths.base}: no daemon has run here yet; start one with: trainbox run")
    return reading


def _status_table(paths: Paths) -> Table:
    """Draw the status for a person; what is not known is left out."""
    reading = _reading(paths)
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
        ("message", status.message),
        ("error", status.error_message),
    ]
    for name, value in rows:
        if value is not None:
            table.add_row(name, Text(value))
    return table


def _status_tables(paths: Paths) -> Iterator[Table]:
    """Yield the status again and again, until the person interrupts."""
    while True:
        yield _status_table(paths)
        time.sleep(WATCH_SECONDS)


def _of(done: int | None, total: int | None) -> str | None:
    return None if done is None or total is None else f"{done} of {total}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    main()
