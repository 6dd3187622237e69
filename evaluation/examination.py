"""One model answers many items: its losses on the expected answers, its own answers, and their grades."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from chat_template import ChatTemplate, Encoded
from config import EvaluationConfig
from evaluation.generation import Answer, Generator
from evaluation.graders import grade, token_f1
from evaluation.items import Item, ItemResult
from evaluation.losses import target_log_probs
from evaluation.short_memory import in_parts


class Examiner:
    """Asks one model; the batch size changes speed and memory, not results."""

    def __init__(self, model: Any, template: ChatTemplate, config: EvaluationConfig) -> None:
        """`model` is a transformers or PEFT causal language model on the device it answers on."""
        self._model = model
        self._template = template
        self._config = config
        self._generator = Generator(model, template, config)

    def losses(
        self, items: Sequence[Item], on_batch: Callable[[], None] = lambda: None
    ) -> list[tuple[float, int]]:
        """Return nats and tokens of the last answer of each item's conversation, in the order given.

        Raises RecordRefused when the template cannot render a conversation.
        """
        rows = [self._template.encode_messages(item.conversation, item.tools) for item in items]
        by_length = sorted(range(len(rows)), key=lambda number: len(rows[number].input_ids))
        found: dict[int, tuple[float, int]] = {}
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
        items: Sequence[Item],
        *,
        with_losses: bool = True,
        with_answers: bool = True,
        on_batch: Callable[[], None] = lambda: None,
    ) -> list[ItemResult]:
        """Return what the model makes of each item, in the order given.

        `on_batch` is called after each batch; what it raises ends the examination.
        """
        losses: Sequence[tuple[float, int] | None] = [None] * len(items)
        answers: Sequence[Answer | None] = [None] * len(items)
        if with_losses:
            losses = self.losses(items, on_batch)
        if with_answers:
            answers = self._answers(items, on_batch)
        return [_result(*found) for found in zip(items, losses, answers, strict=True)]

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

    def _score(self, rows: Sequence[Encoded]) -> list[tuple[float, int]]:
        width = max(len(row.input_ids) for row in rows)
        pad = self._template.pad_token_id
        ids = torch.tensor([row.input_ids + [pad] * (width - len(row.input_ids)) for row in rows])
        # A token is foretold by the one before it; the answer is the last span. Padding comes after all
        # that counts, so that no mask is needed.
        spans = [row.spans[-1] for row in rows]
        positions = [
            number * width + at - 1 for number, (start, end) in enumerate(spans) for at in range(start, end)
        ]
        targets = [
            token for row, (start, end) in zip(rows, spans, strict=True) for token in row.input_ids[start:end]
        ]
        device = self._model.device
        precision = torch.autocast(device.type, torch.bfloat16, enabled=self._model.dtype == torch.bfloat16)
        with torch.no_grad(), precision:
            log_probs = target_log_probs(
                self._model,
                ids.to(device),
                torch.tensor(positions, device=device),
                torch.tensor(targets, device=device),
            )
        counts = [end - start for start, end in spans]
        return [(float(-part.sum()), len(part)) for part in torch.split(log_probs, counts)]


def _result(item: Item, loss: tuple[float, int] | None, answer: Answer | None) -> ItemResult:
    judged = None if answer is None else grade(item.grader, item.expected, answer.text, item.question)
    return ItemResult(
        item_id=item.item_id,
        level=item.level,
        grader=item.grader.name,
        expected=item.expected,
        loss_sum=None if loss is None else loss[0],
        loss_tokens=None if loss is None else loss[1],
        answer=None if answer is None else answer.text,
        correct=None if judged is None else judged.correct,
        score=None if judged is None else judged.score,
        f1=None if answer is None else token_f1(item.expected, answer.text),
        answer_tokens=None if answer is None else answer.tokens,
        finish_reason=None if answer is None else answer.finish_reason,
        seconds=None if answer is None else answer.seconds,
    )
