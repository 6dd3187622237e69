"""The test after training: candidate, current and base answer the same records, within a share of the time.

How much is asked is decided once and kept in the run folder, and each finished part (one model on one slice)
is sealed there, so that a worker that was killed or paused goes on where the last one was. What a version
before has measured on the same records is not measured again.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any, TypeVar

import torch

import durable
from chat_template import ChatTemplate
from config import DataConfig, EvaluationConfig
from evaluation.examination import Examiner
from evaluation.items import Examined, Item, ItemResult, enough_tokens
from training.adapter import load_adapter, set_adapter_weights
from training.slices import Slice
from training.version_report import (
    RESULTS,
    Document,
    ModelRole,
    Settings,
    read_results,
    results_file,
    write_results,
)
from training.versions import Version

logger = logging.getLogger(__name__)

AnyItem = TypeVar("AnyItem", bound=Examined)

FEWEST_LOSSES, MOST_LOSSES = 32, 64
"""Records of each slice whose losses are measured: of the file's own at least, and of any at most."""
FEWEST_EARLIER_LOSSES, FEWEST_SUITE_LOSSES = 96, 32
"""What all earlier files share, and all suites, however short the training was: more of them cost no more."""
MOST_ANSWERS = 32
"""Records of each slice that are answered, if there is time."""
PILOT_RECORDS, PILOT_TOKENS = 8, 4
"""What is timed, on the candidate, to know how much there is time for."""
FEWEST_PAIRS = 16
"""With fewer different answers there is no telling whether they fit their questions."""


class Amounts(Document):
    """How much is asked of each model; decided once for a run."""

    losses: int
    """Records of the file's own slice whose losses are measured."""
    earlier_losses: int
    """The same, of the slice of each earlier file."""
    suite_losses: int
    """The same, of each suite."""
    answers: int
    """Records of each slice that are answered, among those."""
    training_seconds: float | None
    budget_seconds: float


@dataclass(frozen=True)
class Models:
    """The three models in one: a PEFT model whose adapter is exchanged or disabled."""

    model: Any
    candidate: Path
    """Checkpoint of the candidate."""
    initial: Mapping[str, torch.Tensor]
    """Adapter weights the run began with."""

    @contextlib.contextmanager
    def as_candidate(self) -> Iterator[None]:
        """Let the model be what was trained."""
        load_adapter(self.model, self.candidate)
        yield

    @contextlib.contextmanager
    def as_current(self) -> Iterator[None]:
        """Let the model be what the run began with."""
        set_adapter_weights(self.model, dict(self.initial))
        yield

    def as_base(self) -> AbstractContextManager[Any]:
        """Let the model be what lies under the adapter."""
        disabled: AbstractContextManager[Any] = self.model.disable_adapter()
        return disabled


@dataclass(frozen=True)
class Measured:
    """Everything that was measured: by model and slice, one result for each record."""

    slices: tuple[Slice, ...]
    results: Mapping[ModelRole, Mapping[str, Sequence[ItemResult]]]
    matched: tuple[float, ...]
    """The candidate's losses of the file's own answers after their questions."""
    mismatched: tuple[float, ...]
    """Its losses of the same answers after the questions of others."""
    amounts: Amounts
    seconds: float | None
    """None for a test that went on in another process than it began in."""


class VersionTest:
    """Tests what one run has trained; everything it finds out lies in `folder`."""

    def __init__(
        self,
        folder: Path,
        models: Models,
        template: ChatTemplate,
        config: EvaluationConfig,
        data: DataConfig,
        settings: Settings,
        *,
        parent: Version | None,
        on_batch: Callable[[], None],
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """`settings` are those of all results, but for what a slice decides: the length of answers, and
        whether it matters where `data` cuts passages.

        `on_batch` is called after each batch; what it raises ends the test, which can go on later.
        `on_progress` gets the finished parts and how many there are.
        """
        self._folder = folder
        self._models = models
        self._template = template
        self._config = config
        self._data = data
        self._settings = settings
        self._parent = parent
        self._on_batch = on_batch
        self._on_progress = on_progress

    def carry_out(self, own: Slice, others: Sequence[Slice], training_seconds: float | None) -> Measured:
        """Measure all that is not measured yet. `own` are the held-out records of the file itself."""
        began_at, is_begun = time.monotonic(), any(self._folder.glob("*/*.jsonl"))
        slices = tuple(part for part in (own, *others) if part.items)
        roles = self._roles()
        with self._models.as_candidate():
            amounts = self._amounts(own, slices, training_seconds)
            matched, mismatched = self._fit(own)
        results: dict[ModelRole, dict[str, list[ItemResult]]] = {}
        for number, (role, as_role) in enumerate(roles.items()):
            with as_role():
                results[role] = {}
                for at, part in enumerate(slices):
                    losses = _losses_of(part, own, amounts)
                    results[role][part.slice_id] = self._measure(role, part, losses, amounts.answers)
                    self._on_progress(number * len(slices) + at + 1, len(roles) * len(slices))
        if "current" not in results:
            results["current"] = results["base"]
        seconds = time.monotonic() - began_at
        logger.info(
            "Tested on %d slices in %.1f s: %d losses of this file, %d of each earlier one, %d of each "
            "suite, up to %d answers of each",
            *(len(slices), seconds, amounts.losses, amounts.earlier_losses, amounts.suite_losses),
            amounts.answers,
        )
        return Measured(
            slices, results, tuple(matched), tuple(mismatched), amounts, None if is_begun else seconds
        )

    def _roles(self) -> dict[ModelRole, Callable[[], AbstractContextManager[Any]]]:
        """Return the models that are asked; a run from the base began with the base."""
        roles: dict[ModelRole, Callable[[], AbstractContextManager[Any]]] = {
            "candidate": self._models.as_candidate
        }
        if self._parent is not None:
            roles["current"] = self._models.as_current
        return roles | {"base": self._models.as_base}

    # --- how much

    def _amounts(self, own: Slice, slices: Sequence[Slice], training_seconds: float | None) -> Amounts:
        """Return what this run's test comprises, decided at its first beginning."""
        path = self._folder / "amounts.json"
        if path.is_file():
            return Amounts.model_validate(durable.read_json(path))
        amounts = self._decide_amounts(own, slices, training_seconds)
        durable.make_folder(self._folder)
        durable.write_json(path, amounts.model_dump(mode="json"))
        return amounts

    def _decide_amounts(self, own: Slice, slices: Sequence[Slice], training_seconds: float | None) -> Amounts:
        """Share the time out: half of it for losses, what is left of all of it for answers.

        What is timed here counts, and so does the question whether the file's answers fit. Even where there
        is no time left, the fewest losses are measured: without them there would be no verdict.
        """
        budget = self._config.max_test_share * (training_seconds or 0.0)
        amounts = _fewest(own, slices, training_seconds, budget)
        if not slices:
            return amounts
        parts = [(role, part) for role in self._roles() for part in slices if not self._known(role, part)]
        pilot = _by_turns([part.items for part in slices], PILOT_RECORDS)
        spent = self._timed(lambda: self._examiner(PILOT_TOKENS).losses(pilot))
        loss_seconds = spent / len(pilot)
        fit_seconds = 2 * min(MOST_LOSSES, len(own.asked)) * loss_seconds
        left = budget - spent - fit_seconds
        affordable = min(MOST_LOSSES, int(0.5 * left / loss_seconds / len(parts)))
        amounts = amounts.model_copy(
            update={
                name: max(affordable, getattr(amounts, name))
                for name in ("losses", "earlier_losses", "suite_losses")
            }
        )
        left -= loss_seconds * sum(min(_losses_of(part, own, amounts), len(part.items)) for _, part in parts)
        asked = list(chain.from_iterable(part.asked for part in slices))[:PILOT_RECORDS]
        if left > 0 and asked:
            examiner = self._examiner(PILOT_TOKENS)
            answering = self._timed(lambda: examiner.examine(asked, with_losses=False))
            length = sum(self._answer_tokens(part) for _, part in parts if part.asked)
            batch = self._config.per_device_eval_batch_size
            one_batch_each = answering / PILOT_TOKENS * length * batch / len(asked)
            answers = batch * max(0, int((left - answering) / one_batch_each))
            amounts = amounts.model_copy(update={"answers": min(MOST_ANSWERS, answers)})
        return amounts

    def _timed(self, work: Callable[[], Any]) -> float:
        began_at = time.monotonic()
        work()
        self._on_batch()
        return time.monotonic() - began_at

    def _answer_tokens(self, part: Slice) -> int:
        """Return how long answers to a slice may be."""
        tokenizer = self._template.tokenizer
        longest = max(
            (len(tokenizer.encode(item.expected, add_special_tokens=False).ids) for item in part.asked),
            default=0,
        )
        return min(self._config.max_new_tokens, enough_tokens(longest))

    # --- one model on one slice

    def _measure(self, role: ModelRole, part: Slice, losses: int, answers: int) -> list[ItemResult]:
        """Return the results of a model on a slice, measuring what nobody has measured yet."""
        path = results_file(self._folder, role, part.slice_id)
        settings = self._settings_of(part)
        if kept := read_results(path, settings):
            return kept
        known = {result.item_id: result for result in self._known(role, part)}
        examiner = self._examiner(settings.max_new_tokens)
        asked = part.items[:losses]
        answered = [item for item in part.items[: min(losses, answers)] if isinstance(item, Item)]
        for measured in (
            examiner.examine(_without(asked, known, "loss_sum"), with_answers=False, on_batch=self._on_batch),
            examiner.examine(
                _without(answered, known, "correct"), with_losses=False, on_batch=self._on_batch
            ),
        ):
            for result in measured:
                before = known.get(result.item_id)
                known[result.item_id] = result if before is None else _merged(before, result)
        results = [known[item.item_id] for item in asked]
        write_results(path, settings, results)
        # As they are stored, so that a test that goes on later sees the same numbers.
        return read_results(path, settings)

    def _known(self, role: ModelRole, part: Slice) -> list[ItemResult]:
        """Return what the version before has measured of the same model on the same records."""
        if self._parent is None or role == "candidate":
            return []
        its_role: ModelRole = "candidate" if role == "current" else "base"
        path = results_file(self._parent.folder / RESULTS, its_role, part.slice_id)
        items = {item.item_id: item for item in part.items}
        return [
            result
            for result in read_results(path, self._settings_of(part))
            if (item := items.get(result.item_id)) is not None and _is_of(result, item)
        ]

    def _settings_of(self, part: Slice) -> Settings:
        changes: dict[str, Any] = {"max_new_tokens": self._answer_tokens(part)}
        if len(part.asked) < len(part.items):
            changes |= {"max_length": self._data.max_length, "excess_length": self._data.excess_length}
        return self._settings.model_copy(update=changes)

    def _examiner(self, max_new_tokens: int) -> Examiner:
        config = self._config.model_copy(update={"max_new_tokens": max_new_tokens})
        return Examiner(self._models.model, self._template, config, self._data)

    # --- whether the answers of the file fit their questions

    def _fit(self, own: Slice) -> tuple[list[float], list[float]]:
        """Return the losses of the file's answers after their own questions, and after those of others.

        Each answer stands once with a question of its own and once with another's, so that what makes an
        answer likely by itself cancels out. Empty where there are too few different answers.
        """
        path = self._folder / "fit.json"
        if not path.is_file():
            pairs = mismatched_items(own.asked[:MOST_LOSSES])
            losses = [
                [
                    total / tokens
                    for total, tokens in self._examiner(PILOT_TOKENS).losses(items, self._on_batch)
                ]
                for items in zip(*pairs, strict=True)
            ]
            durable.make_folder(self._folder)
            durable.write_json(path, losses or [[], []])
        matched, mismatched = durable.read_json(path)
        return matched, mismatched


def _fewest(
    own: Slice, slices: Sequence[Slice], training_seconds: float | None, budget_seconds: float
) -> Amounts:
    """Return what is asked when there is no time."""
    suites = sum(part.kind == "suite" for part in slices)
    earlier = sum(part.kind == "held_out" and part.slice_id != own.slice_id for part in slices)
    return Amounts(
        losses=FEWEST_LOSSES,
        earlier_losses=_share(FEWEST_EARLIER_LOSSES, earlier),
        suite_losses=_share(FEWEST_SUITE_LOSSES, suites),
        answers=0,
        training_seconds=training_seconds,
        budget_seconds=budget_seconds,
    )


def _losses_of(part: Slice, own: Slice, amounts: Amounts) -> int:
    """Return of how many records of a slice the losses are measured."""
    if part.slice_id == own.slice_id:
        return amounts.losses
    return amounts.suite_losses if part.kind == "suite" else amounts.earlier_losses


def _share(records: int, slices: int) -> int:
    """Return what each slice gives so that together they have so many records, and none of them too many."""
    return min(FEWEST_LOSSES, math.ceil(records / max(1, slices)))


def mismatched_items(items: Sequence[Item]) -> list[tuple[Item, Item]]:
    """Pair each item with itself under the answer of another item, each answer given away once.

    Items whose answer would be the same are left out; nothing is returned when too few are left.
    """
    for shift in range(1, len(items)):
        pairs = [
            (item, replace(item, expected=items[(number + shift) % len(items)].expected))
            for number, item in enumerate(items)
        ]
        different = [
            (own, other) for own, other in pairs if own.expected.casefold() != other.expected.casefold()
        ]
        if len(different) >= max(FEWEST_PAIRS, len(items) // 2):
            return different
    return []


def _by_turns(items: Sequence[Sequence[Examined]], most: int) -> list[Examined]:
    """Return the first ones of each sequence, then the second ones, and so on: long ones and short ones."""
    turns = chain.from_iterable(zip_longest(*items))
    return list(islice((item for item in turns if item is not None), most))


def _is_of(result: ItemResult, item: Examined) -> bool:
    """Tell whether what was asked and expected then is what would be now."""
    asked = (item.expected, item.grader.name) if isinstance(item, Item) else (None, None)
    return asked == (result.expected, result.grader)


def _without(items: Sequence[AnyItem], known: Mapping[str, ItemResult], field: str) -> list[AnyItem]:
    """Return the items of which `field` is not known."""
    return [item for item in items if getattr(known.get(item.item_id), field, None) is None]


def _merged(one: ItemResult, other: ItemResult) -> ItemResult:
    """Return one result with what only the other knows."""
    return other.model_copy(update=one.model_dump(exclude_none=True))
