"""A model answers a suite: item by item, resumed where it was ended, each result kept in its file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import durable
from chat_template import ChatTemplate
from config import Config, Paths
from evaluation.items import Examined, Item, ItemResult, Passage, enough_tokens
from evaluation.lm_eval_tasks import TaskScore, run_lm_eval
from evaluation.suites import Suite
from evaluation.suites.scores import Score, scores
from training.base_model import base_sha256
from training.full_models import base_under
from training.suite_records import RecordKeeper, SuiteHeader, safe_name
from training.versions import VersionStore

if TYPE_CHECKING:  # torch is loaded when a model is
    from evaluation.examination import Examiner

_LIMIT_GRAIN = 32
"""Limits of answers are rounded up to multiples of it, so that items with the same limit fill batches."""


class Contestant:
    """A model that suites are put to; its weights are loaded when the first answer is needed."""

    def __init__(self, paths: Paths, config: Config, which: str) -> None:
        """`which` is ``base``, ``current``, or a version; UsageError when there is no such version."""
        self._paths = paths
        self._config = config
        self._version = None if which == "base" else VersionStore(paths).get(which)
        self._base = base_under(paths, config.model, None if self._version is None else self._version.facts)
        weights = base_sha256(self._base)
        self.name = f"base-{weights[:12]}" if self._version is None else self._version.name
        self._sha256 = weights if self._version is None else self._version.manifest_sha256

    @cached_property
    def template(self) -> ChatTemplate:
        return ChatTemplate.load(self._base, self._config.model.chat_template_kwargs)

    @property
    def reference(self) -> str:
        """What it is called on the command line."""
        return "base" if self._version is None else self._version.name

    @cached_property
    def model(self) -> Any:
        """The base with the version's adapter, on the device that answers."""
        from training.model import load_answering

        return load_answering(self._paths, self._config, self.reference)

    def examiner(self, max_new_tokens: int) -> Examiner:
        """Return who asks it, with answers of a limited length."""
        from evaluation.examination import Examiner

        evaluation = self._config.evaluation.model_copy(update={"max_new_tokens": max_new_tokens})
        return Examiner(self.model, self.template, evaluation, self._config.data)

    def header(self, suite: Suite) -> SuiteHeader:
        """Return all that its answers to a suite depend on."""
        from training.model import hash_tokenizer

        evaluation = self._config.evaluation
        return SuiteHeader(
            model=self.name,
            model_sha256=self._sha256,
            tokenizer_sha256=hash_tokenizer(self._base, self._config.model),
            suite=suite.name,
            title=suite.title,
            suite_sha256=suite.sha256,
            items=len(suite.items),
            precision=self._config.model.precision,
            load_in_4bit=self._config.model.load_in_4bit,
            max_new_tokens=evaluation.suite_max_new_tokens,
            max_generation_seconds=evaluation.max_generation_seconds,
        )


@dataclass(frozen=True)
class SuiteRun:
    """The answers of one model to a suite, or to a part of it."""

    suite: Suite
    model: str
    results: tuple[ItemResult, ...]
    """In the order of the suite; then those of passages."""
    file: Path
    answered: int
    """How many of them were answered now; the others had been before."""
    seconds: float

    @property
    def scores(self) -> list[Score]:
        """The score of each level, and that of all last."""
        return scores(self.results)


def run_suite(
    paths: Paths,
    config: Config,
    model: str | Contestant,
    suite: Suite,
    *,
    limit: int | None = None,
    passages: Sequence[Passage] = (),
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> SuiteRun:
    """Let a model answer a suite, or `limit` items spread over it, and return all results.

    What was answered before, by the same model and with the same settings, is not asked again, but for what
    time did not suffice for. Each batch is
    written when it is answered, then ``on_progress(done, total)`` is called; what that raises ends the run,
    which may be taken up again. `passages` are measured beside the suite, whose hash must tell of them.
    Raises UsageError when there is no such model.
    """
    contestant = Contestant(paths, config, model) if isinstance(model, str) else model
    items = spread(suite.items, limit)
    keeper = RecordKeeper(paths.evaluations, contestant.header(suite))
    missing = [item for item in items if not keeper.has_answered(item)]
    unread = [passage for passage in passages if passage.item_id not in keeper.results]
    began_at = time.monotonic()
    total = len(items) + len(passages)
    done = total - len(missing) - len(unread)
    on_progress(done, total)
    for max_new_tokens, batch in _batches(contestant.template, missing, unread, config):
        keeper.add(contestant.examiner(max_new_tokens).examine(batch))
        done += len(batch)
        on_progress(done, total)
    return SuiteRun(
        suite=suite,
        model=contestant.name,
        results=tuple(
            keeper.results[item_id]
            for item_id in [item.item_id for item in items] + [passage.item_id for passage in passages]
        ),
        file=keeper.file,
        answered=len(missing) + len(unread),
        seconds=time.monotonic() - began_at,
    )


def run_task(
    paths: Paths, config: Config, contestant: Contestant, task: str, *, limit: int | None = None
) -> tuple[Path, list[TaskScore]]:
    """Put a task of lm-eval to a model; return its numbers, and the file that keeps them."""
    from training.model import load_tokenizer

    tokenizer = load_tokenizer(paths, config, contestant.reference)
    batch_size = config.evaluation.per_device_eval_batch_size
    found = run_lm_eval(contestant.model, tokenizer, [task], batch_size=batch_size, limit=limit)
    part = "" if limit is None else f"-first-{limit}"
    file = paths.evaluations / contestant.name / f"lm-eval-{safe_name(Path(task).stem)}{part}.json"
    durable.make_folder(file.parent)
    facts = {"schema_version": 1, "model": contestant.name, "task": task, "limit": limit}
    durable.write_json(file, {**facts, "scores": [asdict(score) for score in found]})
    return file, found


def spread(items: Sequence[Item], limit: int | None) -> tuple[Item, ...]:
    """Return `limit` items at equal distances, so that every level has its share; all without a limit."""
    if limit is None or limit >= len(items):
        return tuple(items)
    return tuple(items[number * len(items) // limit] for number in range(limit))


def answer_limit(expected_tokens: int, most: int) -> int:
    """Return how many tokens an answer may have.

    The limit depends on the item alone, so that the batch it is answered in changes nothing.
    """
    return min(most, -(-enough_tokens(expected_tokens) // _LIMIT_GRAIN) * _LIMIT_GRAIN)


def _batches(
    template: ChatTemplate, items: Sequence[Item], passages: Sequence[Passage], config: Config
) -> Iterator[tuple[int, Sequence[Examined]]]:
    """Yield the items in batches with the same limit of tokens, short answers first; then the passages."""
    by_limit: dict[int, list[Item]] = {}
    for item in items:
        tokens = len(template.tokenizer.encode(item.expected, add_special_tokens=False).ids)
        limit = answer_limit(tokens, config.evaluation.suite_max_new_tokens)
        by_limit.setdefault(limit, []).append(item)
    size = config.evaluation.per_device_eval_batch_size
    for limit, alike in sorted(by_limit.items()):
        yield from ((limit, alike[at : at + size]) for at in range(0, len(alike), size))
    yield from ((0, passages[at : at + size]) for at in range(0, len(passages), size))
