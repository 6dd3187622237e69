"""The command that hands the daemon, or the inference server, to systemd."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.terminal import HERE, Base, console, open_base


def install_service(
    base: Base = HERE,
    system: Annotated[
        bool, typer.Option("--system/--user", help="For the whole machine, or for you alone.")
    ] = False,
    inference: Annotated[
        bool, typer.Option("--inference", help="The inference server instead of the daemon.")
    ] = False,
    name: Annotated[
        str | None, typer.Option(help="Name of the unit, for a second one beside the first.")
    ] = None,
    run_as: Annotated[
        str | None, typer.Option(help="Account of a system unit; by default the base folder's owner.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the unit.")] = False,
) -> None:
    """Write a systemd unit for this checkout and say how to start it; nothing is enabled by itself."""
    from service import Kind, Program, Service

    paths, config = open_base(base)
    kind: Kind = "system" if system else "user"
    program: Program = "inference" if inference else "daemon"
    service = Service.here(kind, paths, config, name=name, run_as=run_as, program=program)
    if dry_run:
        console.print(service.unit(), markup=False, soft_wrap=True, end="")
        return
    console.print(f"Wrote {service.install()}", markup=False, soft_wrap=True)
    console.print("Now run:")
    for command in service.next_commands():
        console.print(f"  {command}", markup=False, soft_wrap=True)
