"""A model is examined item by item: exact losses of the expected answers, its own answers, their grades."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

from chat_template import ChatTemplate
from config import EvaluationConfig
from evaluation.examination import Examiner
from evaluation.generation import Generator
from evaluation.graders import GraderSpec
from evaluation.items import Item

EXACT = GraderSpec(name="exact")
EXPECTED = ["grey", "the colour is red", "blue, please", "yellow or black and the cat sat on the mat"]


@pytest.fixture(scope="module")
def template(tiny_model: Path) -> ChatTemplate:
    return ChatTemplate.load(tiny_model)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def items() -> list[Item]:
    return [
        Item(
            f"item-{number}",
            [{"role": "user", "content": "which " * number}],
            expected,
            GraderSpec(name="exact"),
        )
        for number, expected in enumerate(EXPECTED, start=1)
    ]


def examiner_of(model: Any, template: ChatTemplate, **settings: Any) -> Examiner:
    return Examiner(model, template, EvaluationConfig(**{"max_new_tokens": 12, **settings}))


def test_losses_are_those_that_transformers_reckons_one_by_one(
    model: Any, template: ChatTemplate, items: list[Item]
) -> None:
    found = examiner_of(model, template, per_device_eval_batch_size=3).losses(items)
    for item, (nats, tokens) in zip(items, found, strict=True):
        encoded = template.encode_messages(item.conversation)
        ids = torch.tensor([encoded.input_ids])
        with torch.no_grad():
            logits = model(ids).logits[0, :-1]
        labels = torch.tensor(encoded.labels[1:])
        assert nats == pytest.approx(
            float(functional.cross_entropy(logits, labels, reduction="sum")), rel=1e-4
        )
        assert tokens == encoded.assistant_tokens


def test_only_the_last_answer_of_a_conversation_counts(model: Any, template: ChatTemplate) -> None:
    talk = [
        {"role": "user", "content": "red or blue"},
        {"role": "assistant", "content": "a long answer before the one that counts"},
        {"role": "user", "content": "grey"},
    ]
    ((_, tokens),) = examiner_of(model, template).losses([Item("a", talk, "grey", EXACT)])
    assert tokens == len(template.tokenizer.encode("grey", add_special_tokens=False).ids) + 1


def test_answers_are_those_of_the_generator_and_are_graded(
    model: Any, template: ChatTemplate, items: list[Item]
) -> None:
    config = EvaluationConfig(max_new_tokens=12)
    told = Generator(model, template, config).generate([item.messages for item in items])
    right = Item("right", items[0].messages, told[0].text, EXACT)
    *_, last = found = examiner_of(model, template).examine([*items, right])
    assert [result.answer for result in found[:-1]] == [answer.text for answer in told]
    assert [result.item_id for result in found] == [item.item_id for item in [*items, right]]
    assert not any(result.correct for result in found[:-1])
    assert (last.correct, last.score, last.f1) == (True, 1.0, 1.0)
    assert last.loss is not None and last.loss > 0


def test_an_answer_that_time_does_not_suffice_for_is_kept_and_not_judged(
    model: Any, template: ChatTemplate, items: list[Item]
) -> None:
    hasty = EvaluationConfig(max_new_tokens=12, max_generation_seconds=1e-9)
    for result in Examiner(model, template, hasty).examine(items):
        assert result.finish_reason == "time" and result.answer is not None
        assert (result.correct, result.score, result.f1) == (None, None, None)
        assert result.loss is not None


def test_what_was_not_asked_for_is_null(model: Any, template: ChatTemplate, items: list[Item]) -> None:
    examiner = examiner_of(model, template)
    (losses,) = examiner.examine(items[:1], with_answers=False)
    (answers,) = examiner.examine(items[:1], with_losses=False)
    assert (losses.answer, losses.correct, losses.score, losses.f1) == (None, None, None, None)
    assert (answers.loss, answers.loss_sum) == (None, None)


def test_a_caller_is_heard_after_each_batch_and_may_end_it(
    model: Any, template: ChatTemplate, items: list[Item]
) -> None:
    heard: list[int] = []
    examiner = examiner_of(model, template, per_device_eval_batch_size=2)
    examiner.examine(items, on_batch=lambda: heard.append(1))
    assert len(heard) == 4  # two batches of losses, two of answers

    def end() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        examiner.examine(items, on_batch=end)
