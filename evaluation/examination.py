"""One model is examined: what it loses on expected words, its own answers, and their grades."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch

from chat_template import ChatTemplate, Encoded
from config import DataConfig, EvaluationConfig
from evaluation.generation import Answer, Generator
from evaluation.graders import grade, token_f1
from evaluation.items import Examined, Item, ItemResult, Passage
from evaluation.losses import target_log_probs
from evaluation.passages import expected_rows, rejected_rows
from evaluation.short_memory import in_parts


@dataclass(frozen=True, slots=True)
class _Expectation:
    """What a model makes of expected words without saying any of its own."""

    loss_sum: float
    tokens: int
    is_said: bool
    is_preferred: bool | None = None
    """To the words that were rejected; None where none were."""


class Examiner:
    """Asks one model; the batch size changes speed and memory, not results."""

    def __init__(
        self, model: Any, template: ChatTemplate, config: EvaluationConfig, data: DataConfig | None = None
    ) -> None:
        """`model` is a transformers or PEFT causal language model on the device it answers on.

        `data` says where long passages are cut; the defaults when it is None.
        """
        self._model = model
        self._template = template
        self._config = config
        self._data = data or DataConfig()
        self._generator = Generator(model, template, config)

    def losses(
        self, items: Sequence[Examined], on_batch: Callable[[], None] = lambda: None
    ) -> list[tuple[float, int]]:
        """Return nats and tokens of what each item expects, in the order given: of a conversation that a
        model is asked, its last answer.

        Raises RecordRefused when the template cannot render a conversation.
        """
        return [(found.loss_sum, found.tokens) for found in self._expect(items, on_batch)]

    def _expect(self, items: Sequence[Examined], on_batch: Callable[[], None]) -> list[_Expectation]:
        """Score the expected words of each item, and those rejected beside them, in the order given."""
        expected = [expected_rows(item, self._template, self._data) for item in items]
        rejected = [rejected_rows(item, self._template, self._data) for item in items]
        rows = [row for pair in zip(expected, rejected, strict=True) for part in pair for row in part]
        scored = iter(self._score_rows(rows, on_batch))
        return [
            _judged(_together(islice(scored, len(wanted))), _together(islice(scored, len(unwanted))))
            for wanted, unwanted in zip(expected, rejected, strict=True)
        ]

    def _score_rows(self, rows: Sequence[Encoded], on_batch: Callable[[], None]) -> list[_Expectation]:
        """Score rows batch by batch, those of one length together; return them in the order given."""
        by_length = sorted(range(len(rows)), key=lambda number: len(rows[number].input_ids))
        found: dict[int, _Expectation] = {}
        was_training = self._model.training
        self._model.eval()
        try:
            for numbers, batch in in_parts(
                *(by_length, self._config.per_device_eval_batch_size),
                lambda some: self._score([rows[number] for number in some]),
            ):
                found.update(zip(numbers, batch, strict=True))
                on_batch()
        finally:
            self._model.train(was_training)
        return [found[number] for number in range(len(rows))]

    def examine(
        self,
        items: Sequence[Examined],
        *,
        with_losses: bool = True,
        with_answers: bool = True,
        on_batch: Callable[[], None] = lambda: None,
    ) -> list[ItemResult]:
        """Return what the model makes of each item, in the order given; passages are never asked for.

        `on_batch` is called after each batch; what it raises ends the examination.
        """
        losses: Sequence[_Expectation | None] = [None] * len(items)
        answers: dict[str, Answer] = {}
        if with_losses:
            losses = self._expect(items, on_batch)
        if with_answers:
            asked = [item for item in items if isinstance(item, Item)]
            given = self._answers(asked, on_batch)
            answers = {item.item_id: answer for item, answer in zip(asked, given, strict=True)}
        return [
            _result(item, loss, answers.get(item.item_id)) for item, loss in zip(items, losses, strict=True)
        ]

    def _answers(self, items: Sequence[Item], on_batch: Callable[[], None]) -> list[Answer]:
        """Answer batch by batch, short prompts first, so that `on_batch` is heard in between."""
        prompts = [self._template.encode_prompt(item.messages, item.tools) for item in items]
        by_length = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
        size = self._config.per_device_eval_batch_size
        answers: dict[int, Answer] = {}
        for at in range(0, len(by_length), size):
            numbers = by_length[at : at + size]
            batch = self._generator.generate_from_ids([prompts[number] for number in numbers])
            answers.update(zip(numbers, batch, strict=True))
            on_batch()
        return [answers[number] for number in range(len(items))]

    def _score(self, rows: Sequence[Encoded]) -> list[_Expectation]:
        width = max(len(row.input_ids) for row in rows)
        pad = self._template.pad_token_id
        ids = torch.tensor([row.input_ids + [pad] * (width - len(row.input_ids)) for row in rows])
        # A token is foretold by the one before it. Padding comes after all that counts, so that no mask is
        # needed.
        positions = [
            number * width + at - 1
            for number, row in enumerate(rows)
            for start, end in row.spans
            for at in range(start, end)
        ]
        targets = [token for row in rows for start, end in row.spans for token in row.input_ids[start:end]]
        device = self._model.device
        precision = torch.autocast(device.type, torch.bfloat16, enabled=self._model.dtype == torch.bfloat16)
        wanted = torch.tensor(targets, device=device)
        greedy: list[torch.Tensor] = []
        with torch.no_grad(), precision:
            log_probs = target_log_probs(
                self._model,
                ids.to(device),
                torch.tensor(positions, device=device),
                wanted,
                on_logits=lambda logits: greedy.append(logits.argmax(-1)),
            )
        counts = [row.assistant_tokens for row in rows]
        # Each expected token is the likeliest after those before it: just what greedy decoding would say.
        is_said = torch.split(torch.cat(greedy) == wanted, counts)
        return [
            _Expectation(float(-part.sum()), len(part), bool(said.all()))
            for part, said in zip(torch.split(log_probs, counts), is_said, strict=True)
        ]


def _together(rows: Iterable[_Expectation]) -> _Expectation:
    """Return one for all rows of one item; without a row nothing was measured."""
    scored = list(rows)
    return _Expectation(
        sum(row.loss_sum for row in scored),
        sum(row.tokens for row in scored),
        bool(scored) and all(row.is_said for row in scored),
    )


def _judged(expected: _Expectation, rejected: _Expectation) -> _Expectation:
    """Add whether what is expected is likelier, token by token, than what was rejected."""
    if not (expected.tokens and rejected.tokens):
        return expected
    is_preferred = expected.loss_sum / expected.tokens < rejected.loss_sum / rejected.tokens
    return replace(expected, is_preferred=is_preferred)


def _result(item: Examined, loss: _Expectation | None, answer: Answer | None) -> ItemResult:
    if loss is not None and not loss.tokens:
        loss = None
    if isinstance(item, Passage):
        return ItemResult(
            item_id=item.item_id,
            loss_sum=None if loss is None else loss.loss_sum,
            loss_tokens=None if loss is None else loss.tokens,
            prefers_expected=None if loss is None else loss.is_preferred,
        )
    # An answer that time did not suffice for is kept, and neither right nor wrong.
    is_whole = answer is not None and answer.finish_reason != "time"
    judged = grade(item.grader, item.expected, answer.text, item.question) if answer and is_whole else None
    return ItemResult(
        item_id=item.item_id,
        level=item.level,
        grader=item.grader.name,
        expected=item.expected,
        loss_sum=None if loss is None else loss.loss_sum,
        loss_tokens=None if loss is None else loss.tokens,
        says_expected=None if loss is None else loss.is_said,
        answer=None if answer is None else answer.text,
        correct=None if judged is None else judged.correct,
        score=None if judged is None else judged.score,
        f1=token_f1(item.expected, answer.text) if answer and is_whole else None,
        answer_tokens=None if answer is None else answer.tokens,
        finish_reason=None if answer is None else answer.finish_reason,
        seconds=None if answer is None else answer.seconds,
    )
