"""The command that puts two models side by side."""

from __future__ import annotations

import hashlib
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

import durable
from cli.terminal import HERE, AsJson, Base, Settings, console, number, open_base

if TYPE_CHECKING:
    from config import Config, DataConfig, Paths
    from evaluation.items import Passage
    from evaluation.suites import Suite
    from training.slices import Slice
    from training.version_comparison import Comparison, Pair, PartComparison
    from training.version_report import SliceKind

Model = Annotated[str, typer.Argument(help="current, base, or a version.")]


def compare(
    a: Model,
    b: Model,
    suites: Annotated[
        list[str] | None,
        typer.Option("--suite", help="A suite by name, or the path of a JSONL file; may be given again."),
    ] = None,
    show: Annotated[
        bool, typer.Option("--show", help="Show each item that one of the two got right.")
    ] = False,
    as_json: AsJson = False,
    base: Base = HERE,
    settings: Settings = None,
) -> None:
    """Put two models side by side: accuracy, loss, F1 and speed, with paired tests, and which is better.

    By default on everything that was held out so far and on the configured suites. What a model answered
    before is not asked again. Differences are those of the second model against the first.
    """
    from training.suite_runs import Contestant, run_suite
    from training.version_comparison import Answered
    from training.version_comparison import compare as compare_results

    paths, config = open_base(base, settings)
    paths.create()
    asked = _suites(paths, config, suites)
    contestants = [Contestant(paths, config, which) for which in (a, b)]
    runs = [
        [run_suite(paths, config, model, suite, passages=passages) for suite, _, passages in asked]
        for model in contestants
    ]
    found = compare_results(
        *(contestants[0].name, contestants[1].name),
        [
            Answered(suite.title or suite.name, kind, one.results, other.results)
            for (suite, kind, _), one, other in zip(asked, *runs, strict=True)
        ],
        confidence=config.promotion.confidence,
        seed=config.train.seed,
    )
    if as_json:
        sys.stdout.buffer.write(durable.to_json(found.model_dump(mode="json")))
        return
    _print(found)
    if show:
        _print_disagreements(found)


def _suites(
    paths: Paths, config: Config, names: list[str] | None
) -> list[tuple[Suite, SliceKind, tuple[Passage, ...]]]:
    """Return the suites that were named, or else all held-out slices, with their passages, and the configured
    suites."""
    from errors import UsageError
    from evaluation.suites import load_suite
    from training.slices import every_held_out_slice, suites_of

    if names:
        return [(load_suite(name), "suite", ()) for name in names]
    asked: list[tuple[Suite, SliceKind, tuple[Passage, ...]]] = [
        (_as_suite(part, config.data), "held_out", part.passages) for part in every_held_out_slice(paths)
    ]
    asked += [(suite, "suite", ()) for suite in suites_of(paths, config.evaluation)]
    if not asked:
        raise UsageError(
            "nothing to compare on: nothing was held out yet and evaluation.suites is empty; name a --suite"
        )
    return asked


def _as_suite(part: Slice, data: DataConfig) -> Suite:
    """Return a held-out slice as a suite of what can be asked; its hash tells of the passages too."""
    from evaluation.suites import Suite

    content = [item.item_id for item in part.items]
    if part.passages:
        content.append(f"cut {data.max_length} {data.excess_length}")
    sha256 = hashlib.sha256("".join(content).encode()).hexdigest()
    return Suite(name=f"held_out_{part.slice_id}", title=part.name, items=part.asked, sha256=sha256)


def _print(found: Comparison) -> None:
    table = Table("", "items", "", "accuracy", "loss", "F1", "tokens/s", "winner")
    for part in found.parts:
        _add_part(table, part, found)
    console.print(table)
    words = {"a": f"{found.a} is better", "b": f"{found.b} is better", "no difference": "no difference"}
    verdict = words.get(found.winner, "each is better somewhere")
    console.print(f"{found.a} and {found.b}: {verdict} ({found.confidence:.0%} confidence)", markup=False)


def _add_part(table: Table, part: PartComparison, found: Comparison) -> None:
    for name, score in ((found.a, part.a), (found.b, part.b)):
        is_first = name == found.a
        table.add_row(
            Text(part.name if is_first else ""),
            str(part.records) if is_first else "",
            name,
            _percent(score.accuracy, score.interval),
            number(score.loss),
            number(score.f1),
            number(score.tokens_per_second),
            "",
        )
    winner = {"a": found.a, "b": found.b}.get(part.winner, part.winner)
    change, low_high = part.accuracy_difference, part.loss_interval
    accuracy = (
        "-" if change is None else f"{change:+.1%} (+{part.gained} -{part.lost}, p {part.mcnemar_p:.2g})"
    )
    loss = "-"
    if part.loss_difference is not None and low_high is not None:
        test = f"p {part.loss_p:.2g}" if part.loss_decides else "not judged"
        loss = f"{part.loss_difference:+.3f} ({low_high[0]:+.3f} to {low_high[1]:+.3f}, {test})"
    table.add_row("", "", "difference", accuracy, loss, "", "", winner, end_section=True)


def _print_disagreements(found: Comparison) -> None:
    for pair in found.disagreements:
        for line in _disagreement(pair, found):
            console.print(Text(line))
    if not found.disagreements:
        is_judged = any(part.accuracy_difference is not None for part in found.parts)
        console.print("Both got the same items right." if is_judged else "No item was judged right or wrong.")


def _disagreement(pair: Pair, found: Comparison) -> list[str]:
    """Say in lines who is right about an item, and what both answered where they were asked."""
    right = found.a if pair.a.is_right else found.b
    if pair.a.correct is None:
        return [f"\n{pair.item_id}: only {right} prefers the chosen answer"]
    return [
        f"\n{pair.item_id}: only {right} is right; expected {pair.expected!r}",
        *(f"  {name}: {result.answer!r}" for name, result in ((found.a, pair.a), (found.b, pair.b))),
    ]


def _percent(share: float | None, interval: tuple[float, float] | None) -> str:
    if share is None:
        return "-"
    return f"{share:.1%}" + ("" if interval is None else f" ({interval[0]:.1%} to {interval[1]:.1%})")
