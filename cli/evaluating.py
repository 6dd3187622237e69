"""Commands that measure: bench, and making puzzles to train on."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

import orjson
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

import durable
from cli.terminal import HERE, AsJson, Base, Settings, complaints, console, open_base

if TYPE_CHECKING:
    from evaluation.lm_eval_tasks import TaskScore
    from evaluation.suites.scores import Score
    from training.suite_runs import SuiteRun

Suites = Annotated[
    list[str] | None,
    typer.Option(
        "--suite",
        help="A suite by name, the path of a JSONL file, or lm-eval:TASK; may be given again. "
        "By default the suites of everyday skills.",
    ),
]
Limit = Annotated[int | None, typer.Option(min=1, help="Only so many items of each suite, spread over it.")]


def bench(
    model: Annotated[str, typer.Option("--model", "-m", help="current, base, or a version.")] = "current",
    suites: Suites = None,
    limit: Limit = None,
    base: Base = HERE,
    as_json: AsJson = False,
    settings: Settings = None,
) -> None:
    """Let a model answer suites, and show its accuracy with 95 % intervals.

    Each answer is kept in models/evaluations/, so an ended command goes on where it was when it is given
    again. It may be used while the daemon trains: both then share the device and its memory, and both
    are slower.
    """
    from evaluation.lm_eval_tasks import task_of
    from evaluation.suites import DEFAULT_SUITES, load_suite
    from training.ledger.evaluations import record_evaluations
    from training.suite_runs import Contestant, run_suite, run_task

    paths, config = open_base(base, settings)
    paths.create()
    names = suites or list(DEFAULT_SUITES)
    tasks = [task for name in names if (task := task_of(name)) is not None]
    ours = [load_suite(name) for name in names if task_of(name) is None]
    contestant = Contestant(paths, config, model)
    runs: list[SuiteRun] = []
    with _progress() as progress:
        for suite in ours:
            bar = progress.add_task(suite.name, total=None)

            def show(done: int, total: int, bar: int = bar) -> None:
                progress.update(bar, completed=done, total=total)  # type: ignore[arg-type]

            runs.append(run_suite(paths, config, contestant, suite, limit=limit, on_progress=show))
    found = [run_task(paths, config, contestant, task, limit=limit) for task in tasks]
    trouble = record_evaluations(paths, config) if runs else None
    if trouble is not None:
        complaints.print(f"The ledger will take the results in later: {trouble}", markup=False)
    if as_json:
        document = {
            "runs": [_run_document(run) for run in runs],
            "tasks": [{"file": str(file), "scores": [asdict(one) for one in some]} for file, some in found],
        }
        sys.stdout.buffer.write(durable.to_json(document))
        return
    for run in runs:
        _show_run(run)
    if found:
        _show_tasks(contestant.name, [score for _, some in found for score in some])


def syllo(
    count: Annotated[int, typer.Option(min=1, help="How many puzzles.")] = 100,
    level: Annotated[Literal["easy", "medium", "hard"], typer.Option(help="How hard they are.")] = "easy",
    seed: Annotated[int, typer.Option(help="The same seed gives the same puzzles.")] = 1,
    contract: Annotated[
        Literal["brief", "full"],
        typer.Option(help="Whether replies count all tiles, or name those left over."),
    ] = "brief",
) -> None:
    """Make SYLLO puzzles to train on, one record a line; no word of the suites occurs in them."""
    from evaluation.syllo.generating import make_puzzles
    from evaluation.syllo.wording import record_of

    for puzzle in make_puzzles(count, level, seed=seed, contract=contract):
        sys.stdout.buffer.write(orjson.dumps(record_of(puzzle), option=orjson.OPT_APPEND_NEWLINE))


def _progress() -> Progress:
    """Return bars on the standard error, so that the results alone may go to a file."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=complaints,
        disable=not complaints.is_terminal,
    )


def _show_run(run: SuiteRun) -> None:
    table = Table("level", "items", "right", "%", "95 % interval", "mean score", "form %", "cut off")
    for score in run.scores:
        low, high = score.interval
        table.add_row(
            Text("all" if score.is_overall else score.level or "-"),
            str(score.items),
            str(score.correct),
            _percent(score.accuracy),
            f"{_percent(low)} – {_percent(high)}",
            f"{score.mean_score:.3f}",
            _percent(score.format_rate),
            str(score.cut_off),
        )
    part = "" if len(run.results) == len(run.suite.items) else f", {len(run.results)} of its items"
    console.print(Text(f"{run.suite.name} by {run.model}{part}: {run.suite.title}"))
    console.print(table)


def _show_tasks(model: str, found: list[TaskScore]) -> None:
    table = Table("task", "metric", "value", "standard error", "samples")
    for score in found:
        table.add_row(
            Text(score.task),
            Text(score.metric),
            f"{score.value:.4f}",
            "-" if score.standard_error is None else f"{score.standard_error:.4f}",
            "-" if score.samples is None else str(score.samples),
        )
    console.print(Text(f"Tasks of lm-eval by {model}"))
    console.print(table)


def _run_document(run: SuiteRun) -> dict[str, object]:
    return {
        "suite": run.suite.name,
        "suite_sha256": run.suite.sha256,
        "model": run.model,
        "items": len(run.suite.items),
        "answered": len(run.results),
        "file": str(run.file),
        "scores": [_score_document(score) for score in run.scores],
    }


def _score_document(score: Score) -> dict[str, object]:
    low, high = score.interval
    return {
        "level": score.level,
        "is_overall": score.is_overall,
        "items": score.items,
        "correct": score.correct,
        "accuracy": score.accuracy,
        "interval": [low, high],
        "mean_score": score.mean_score,
        "format_rate": score.format_rate,
        "cut_off": score.cut_off,
    }


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"
