"""Commands about versions: their list, and which of them is current."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table
from rich.text import Text

from cli.terminal import HERE, Base, Reason, Settings, console, number, open_base
from errors import UsageError

if TYPE_CHECKING:
    from training.backups import Backups

Chosen = Annotated[str, typer.Argument(help="For instance v0003.")]
Precision = Annotated[
    Literal["float32", "bfloat16", "float16"],
    typer.Option(help="How weights are stored: exact, or in half the bytes and rounded."),
]

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


@app.command()
def verify(
    version: Annotated[str | None, typer.Argument(help="By default every version.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every version, as without an argument.")] = False,
    base: Base = HERE,
    settings: Settings = None,
) -> None:
    """Check every byte of versions, their backups and full models; exit 1 when any is damaged."""
    if every and version is not None:
        raise UsageError(f"found {version} and --all, expected one of them")
    backups = _backups(base, settings)
    has_damage = False
    for examined in backups.examine([] if version is None else [version]):
        has_damage |= bool(examined.damage)
        if examined.damage:
            console.print(f"DAMAGED  {examined.folder}", markup=False, soft_wrap=True)
            for damage in examined.damage:
                console.print(f"         {damage}", markup=False, soft_wrap=True)
        else:
            size = f"{examined.files} files, {examined.size_bytes} bytes"
            console.print(f"ok       {examined.folder}: {size}", markup=False, soft_wrap=True)
    raise typer.Exit(1 if has_damage else 0)


@app.command()
def delete(version: Chosen, base: Base = HERE, settings: Settings = None) -> None:
    """Move a version aside to models/backups/, unless a rule protects it; `restore` brings it back."""
    from training.backups import housekeeping

    paths, _ = open_base(base, settings)
    with housekeeping(paths):
        aside = _backups(base, settings).delete(version)
    console.print(
        f"Moved to {aside}; bring it back with: trainbox versions restore {aside.name}", markup=False
    )


@app.command()
def restore(version: Chosen, base: Base = HERE, settings: Settings = None) -> None:
    """Bring a deleted or damaged version back from a verified copy, under its own name."""
    from training.backups import housekeeping

    paths, _ = open_base(base, settings)
    with housekeeping(paths):
        restored = _backups(base, settings).restore(version)
    console.print(f"{restored.name} is there and whole: {restored.folder}", markup=False)


@app.command()
def backup(
    version: Annotated[str | None, typer.Argument(help="By default every version.")] = None,
    base: Base = HERE,
    settings: Settings = None,
) -> None:
    """Copy versions to backup.root, verified by hash; without one, to models/backups/ on the same disk."""
    from training.backups import housekeeping
    from training.versions import VersionStore

    paths, config = open_base(base, settings)
    store, backups = VersionStore(paths), _backups(base, settings)
    with housekeeping(paths):
        for each in store.list() if version is None else [store.get(version)]:
            console.print(f"{each.name} has a verified copy: {backups.back_up(each)}", markup=False)
    if not config.backup.root:
        console.print("These copies lie on the same disk; set backup.root to a folder on another one.")


@app.command()
def consolidate(
    precision: Precision = "float32",
    base: Base = HERE,
    settings: Settings = None,
) -> None:
    """Merge the current version into a full model that the next file is trained on; safe to repeat."""
    from training.consolidation import Consolidation

    paths, config = open_base(base, settings)
    merged = Consolidation(paths, config, precision).carry_out()
    console.print(f"Current is {merged.name}: {merged.facts.decision_reason}", markup=False, soft_wrap=True)


@app.command()
def export(
    version: Chosen,
    to: Annotated[Path, typer.Option(help="A new folder.")],
    form: Annotated[
        Literal["peft", "merged", "gguf"],
        typer.Option("--format", help="An adapter, a full model, or a file for llama.cpp."),
    ] = "merged",
    precision: Precision = "float32",
    base: Base = HERE,
    settings: Settings = None,
) -> None:
    """Write a version for use elsewhere, and show that what was written answers as the version does."""
    from training.exporting import Exporter
    from training.versions import VersionStore

    paths, config = open_base(base, settings)
    done = Exporter(paths, config).export(VersionStore(paths).get(version), form, to, precision)
    console.print(f"Wrote {done.format} to {done.folder}", markup=False, soft_wrap=True)
    console.print(str(done.likeness), markup=False, soft_wrap=True)
    if done.obstacle is not None:
        console.print(
            f"Not as GGUF: {done.obstacle}. llama.cpp's converter may know it:\n  {done.command}",
            markup=False,
            soft_wrap=True,
        )


@app.command()
def prune(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do it; without this it is only shown.")] = False,
    base: Base = HERE,
    settings: Settings = None,
) -> None:
    """Show what retention.max_bytes would remove, oldest first; with --yes remove it."""
    from training.backups import housekeeping
    from training.retention import Retention
    from training.versions import VersionStore

    paths, config = open_base(base, settings)
    store, backups = VersionStore(paths), _backups(base, settings)
    retention = Retention(paths, store, backups, config.retention.max_bytes)
    with housekeeping(paths):
        plan = retention.carry_out() if yes else retention.plan()
    for removal in plan.removals:
        what = f"{removal.folder.relative_to(paths.base)}, {removal.size_bytes} bytes: {removal.reason}"
        console.print(f"{'Removed' if yes else 'Would remove'} {what}", markup=False, soft_wrap=True)
    console.print(
        f"{plan.used_bytes} bytes used of {plan.max_bytes}, {plan.freed_bytes} "
        + ("removed" if yes else "to be removed" + ("; do it with --yes" if plan.removals else "")),
        soft_wrap=True,
    )
    if plan.excess_bytes:
        console.print(f"{plan.excess_bytes} bytes are above the limit and still needed.", soft_wrap=True)


def _backups(base: Path, settings: list[str] | None) -> Backups:
    from training.backups import Backups
    from training.versions import VersionStore

    paths, config = open_base(base, settings)
    return Backups(paths, VersionStore(paths), config.backup)
