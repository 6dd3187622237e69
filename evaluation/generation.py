"""The one way a model is asked: greedy, in batches, bounded in tokens and in seconds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from chat_template import ChatTemplate, Message
from config import EvaluationConfig
from evaluation.short_memory import in_parts

FinishReason = Literal["stop", "length", "time"]


@dataclass(frozen=True)
class Answer:
    """What the model said to one prompt."""

    text: str
    prompt_tokens: int
    tokens: int
    """Generated tokens, the one that ended the answer included."""
    finish_reason: FinishReason
    seconds: float
    """Time of the batch it was generated in."""


class Deadline(StoppingCriteria):  # type: ignore[misc]
    """Ends generation at a moment of the monotonic clock; a signal could not interrupt a CUDA call."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self.passed = False

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor | None, **kwargs: Any) -> torch.Tensor:
        """Return for each sequence whether it ends here, shape ``(B,)``."""
        self.passed = time.monotonic() >= self._end
        return torch.full((len(input_ids),), self.passed, device=input_ids.device, dtype=torch.bool)


class Generator:
    """Answers conversations with a model and its chat template."""

    def __init__(self, model: Any, template: ChatTemplate, config: EvaluationConfig) -> None:
        """`model` is a transformers or PEFT causal language model on the device it answers on."""
        self._model = model
        self._template = template
        self._config = config

    def generate(
        self,
        conversations: Sequence[Sequence[Message]],
        *,
        tools: Sequence[list[Any] | None] | None = None,
        max_new_tokens: int | None = None,
        max_seconds: float | None = None,
    ) -> list[Answer]:
        """Answer each conversation, in the order given; the limits default to ``evaluation.*``.

        Raises RecordRefused when the template cannot render a conversation.
        """
        every_tools = tools or [None] * len(conversations)
        prompts = [
            self._template.encode_prompt(messages, its_tools)
            for messages, its_tools in zip(conversations, every_tools, strict=True)
        ]
        return self.generate_from_ids(prompts, max_new_tokens=max_new_tokens, max_seconds=max_seconds)

    def generate_from_ids(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int | None = None,
        max_seconds: float | None = None,
    ) -> list[Answer]:
        """Answer tokenised prompts, in the order given."""
        limit = max_new_tokens or self._config.max_new_tokens
        seconds = max_seconds or self._config.max_generation_seconds
        answers: dict[int, Answer] = {}
        by_length = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
        was_training = self._model.training
        self._model.eval()
        try:
            for numbers, batch in in_parts(
                *(by_length, self._config.per_device_eval_batch_size),
                lambda some: self._answer([prompts[number] for number in some], limit, seconds),
            ):
                answers.update(zip(numbers, batch, strict=True))
        finally:
            self._model.train(was_training)
        return [answers[number] for number in range(len(prompts))]

    def _answer(self, prompts: Sequence[Sequence[int]], limit: int, seconds: float) -> list[Answer]:
        width = max(map(len, prompts))
        pad = self._template.pad_token_id
        ids = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        deadline = Deadline(seconds)
        start = time.monotonic()
        # As in training, so that a model in training and its version give the same answers.
        is_bf16 = self._model.dtype == torch.bfloat16
        precision = torch.autocast(self._model.device.type, torch.bfloat16, enabled=is_bf16)
        with torch.no_grad(), precision:
            output = self._model.generate(
                input_ids=ids.to(self._model.device),
                attention_mask=mask.to(self._model.device),
                generation_config=self._greedy(limit),
                stopping_criteria=StoppingCriteriaList([deadline]),
            )
        elapsed = time.monotonic() - start
        # The prompt is cut off as tokens: cut off as text, it takes a piece of the answer with it.
        return [
            self._read(prompt, generated, deadline.passed, elapsed)
            for prompt, generated in zip(prompts, output[:, width:].tolist(), strict=True)
        ]

    def _greedy(self, limit: int) -> GenerationConfig:
        return GenerationConfig(
            max_new_tokens=limit,
            do_sample=False,
            eos_token_id=sorted(self._template.stop_token_ids) or None,
            pad_token_id=self._template.pad_token_id,
            use_cache=True,
        )

    def _read(self, prompt: Sequence[int], generated: list[int], is_late: bool, seconds: float) -> Answer:
        ends = [at for at, token in enumerate(generated) if token in self._template.stop_token_ids]
        kept = generated[: ends[0]] if ends else generated
        reason: FinishReason = "stop" if ends else "time" if is_late else "length"
        return Answer(
            text=self._template.decode(kept),
            prompt_tokens=len(prompt),
            tokens=len(kept) + bool(ends),
            finish_reason=reason,
            seconds=seconds,
        )
