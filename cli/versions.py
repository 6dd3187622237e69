"""Commands about versions: their list, and which of them is current."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from cli.terminal import HERE, Base, Reason, console, number, open_base

app = typer.Typer(
    help="The versions: without a command their list, with lineage and verdict; * marks the current one.",
    invoke_without_command=True,
)


@app.callback()
def versions(context: typer.Context, base: Base = HERE) -> None:
    """List every version with its lineage and its verdict; * marks the current one."""
    if context.invoked_subcommand is not None:
        return
    from training.versions import VersionStore

    paths, _ = open_base(base)
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
            f"{number(facts.held_out.before_loss)} → {number(facts.held_out.after_loss)}",
            facts.decision,
        )
    if not known:
        console.print("No versions yet: drop a file into inbox/ and run the daemon.")
        return
    console.print(table)
    for version in known:
        if version.facts.decision == "hold":
            console.print(f"{version.name} was held: {version.facts.decision_reason}", markup=False)


def promote(
    version: Annotated[str, typer.Argument(help="For instance v0003.")],
    base: Base = HERE,
    reason: Reason = "promoted by hand",
) -> None:
    """Make a version current by hand, a held one too; it stays until a newer one is promoted."""
    from training.versions import VersionStore

    paths, _ = open_base(base)
    chosen = VersionStore(paths).promote(version, reason, pinned=True)
    console.print(f"Current is now {chosen.name}: {chosen.folder}", markup=False)


@app.command()
def rollback(
    to: Annotated[str | None, typer.Argument(help="By default the version that current continues.")] = None,
    base: Base = HERE,
) -> None:
    """Make an earlier version current; it stays until a newer one is promoted."""
    from training.versions import VersionStore

    paths, _ = open_base(base)
    chosen = VersionStore(paths).rollback(to)
    console.print(f"Current is now {chosen.name}: {chosen.folder}", markup=False)
