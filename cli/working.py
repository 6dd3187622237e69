"""Commands that do the work: run, prepare, check, doctor."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from cli.terminal import HERE, AsJson, Base, Settings, console, open_base
from config import RunPaths
from errors import UsageError


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


def prepare(base: Base = HERE, settings: Settings = None) -> None:
    """Fetch and convert the embedded base model, once."""
    from training.base_model import prepare_base

    paths, _ = open_base(base, settings)
    paths.create()
    console.print(f"Base model ready: {prepare_base(paths)}", markup=False)


def check(
    file: Annotated[Path, typer.Argument(help="A data file: .jsonl .json .jsonl.gz .csv .parquet")],
    base: Base = HERE,
    as_json: AsJson = False,
    settings: Settings = None,
) -> None:
    """Check a data file as the daemon would, without training: exit 0 usable, 1 refused, 2 usage.

    Records that nearly are held-out ones, of this file or of the base folder's earlier ones, are counted.
    """
    from chat_template import ChatTemplate
    from intake.validation import PlanInputs, check_file
    from training.base_model import locate_base
    from training.held_out import held_out_files, held_out_keys
    from training.throughput import last_throughput

    paths, config = open_base(base, settings)
    if not file.is_file():
        raise UsageError(f"{file}: found no such file, expected a data file")
    template = ChatTemplate.load(locate_base(paths, config.model), config.model.chat_template_kwargs)
    train = config.train
    plan = PlanInputs(
        batch_records=train.per_device_train_batch_size * train.gradient_accumulation_steps,
        epochs=train.num_train_epochs,
        tokens_per_second=last_throughput(paths, config.model),
        test_share=config.evaluation.max_test_share,
    )
    with tempfile.TemporaryDirectory(prefix="trainbox-check-") as folder:
        report = check_file(
            file,
            config.data,
            template,
            seed=train.seed,
            name=file.name,
            plan=plan,
            output=RunPaths(Path(folder)),
            held_out_keys=held_out_keys(paths),
            held_out_files=held_out_files(paths),
        )
    sys.stdout.write(report.to_json() if as_json else report.to_text())
    raise typer.Exit(0 if report.usable else 1)


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
