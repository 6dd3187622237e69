"""Commands about the ledger: its list of jobs, and making it again."""

from __future__ import annotations

import sys

import typer
from rich.table import Table
from rich.text import Text

import durable
from cli.terminal import HERE, AsJson, Base, console, open_base

app = typer.Typer(
    help="The ledger, an index of all jobs: without a command their list.", invoke_without_command=True
)


@app.callback()
def ledger(context: typer.Context, base: Base = HERE, as_json: AsJson = False) -> None:
    """List every job in the ledger: what became of it, how far it came, and how well it did."""
    if context.invoked_subcommand is not None:
        return
    from training.ledger.upkeep import recorded_jobs

    paths, config = open_base(base)
    jobs = recorded_jobs(paths, config)
    if as_json:
        sys.stdout.buffer.write(durable.to_json(jobs))
        return
    table = Table("job", "file", "status", "step", "loss", "held-out loss", "version", "updated")
    for job in jobs:
        steps = "-" if job["total_steps"] is None else f"{job['current_step']} of {job['total_steps']}"
        table.add_row(
            job["id"],
            Text(job["file_name"]),
            job["outcome"] or job["status"],
            steps,
            _number(job["loss"]),
            _number(job["final_eval_loss"] if job["final_eval_loss"] is not None else job["eval_loss"]),
            job["version"] or "-",
            f"{job['updated_at'].astimezone():%Y-%m-%d %H:%M}",
        )
    console.print(table if jobs else "No jobs yet: drop a file into inbox/ and run the daemon.")


@app.command()
def rebuild(context: typer.Context, base: Base = HERE, as_json: AsJson = False) -> None:
    """Make the whole ledger again from the run folders; a daemon must be ended first."""
    from monitoring.daemon_lock import only_daemon
    from training.ledger.upkeep import rebuild_ledger

    assert context.parent is not None
    paths, config = open_base(base if base != HERE else context.parent.params["base"])
    paths.create()
    with only_daemon(paths):
        jobs = rebuild_ledger(paths, config)
    if as_json:
        sys.stdout.buffer.write(durable.to_json({"jobs": jobs}))
    else:
        console.print(f"Made the ledger again: {jobs} {'job' if jobs == 1 else 'jobs'}.")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
