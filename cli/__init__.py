"""The `trainbox` command: builds objects, calls one of their methods, prints what came back."""

from __future__ import annotations

import sys

import typer

from cli import asking, commanding, comparing, evaluating, ledger, looking, service, versions, working
from cli.terminal import complaints
from errors import TrainboxError, UsageError

app = typer.Typer(
    help="The folder that trains: drop a file into inbox/, get a tested version of your model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    *(working.run, working.prepare, working.check, looking.status),
    *(commanding.pause, commanding.resume, commanding.skip, commanding.stop),
    *(versions.promote, versions.rollback, working.doctor),
    *(evaluating.bench, comparing.compare, evaluating.syllo),
    *(asking.serve, asking.generate, asking.chat, service.install_service),
):
    app.command()(command)
app.command("checkpoints")(looking.list_checkpoints)
app.add_typer(versions.app, name="versions")
app.add_typer(ledger.app, name="ledger")


def main() -> None:
    """Run the command line; exit with 2 when it was asked for what cannot be, 1 on any other trouble."""
    try:
        app()
    except UsageError as error:
        complaints.print(f"trainbox: {error}", markup=False)
        sys.exit(2)
    except (TrainboxError, OSError) as error:
        complaints.print(f"trainbox: {error}", markup=False)
        sys.exit(1)
