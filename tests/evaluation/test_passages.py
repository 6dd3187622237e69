"""What is examined becomes rows of tokens whose counted spans are those the trainer trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

from chat_template import ChatTemplate, Encoded
from config import DataConfig, EvaluationConfig
from evaluation.examination import Examiner
from evaluation.graders import GraderSpec
from evaluation.items import Examined, Item, Passage
from evaluation.passages import expected_rows, rejected_rows

WHOLE = DataConfig()
TEXT = "the small grey cat sat on the warm mat and watched the rain"
ASKED = {"role": "user", "content": "which colour is the cat"}
SAID = {"role": "assistant", "content": "red"}
BETTER = {"role": "assistant", "content": "grey as the cat"}
WORSE = {"role": "assistant", "content": "no answer"}
PAIR = Passage("pair", given=[ASKED, SAID, ASKED], turns=[BETTER], rejected=[WORSE])


@pytest.fixture(scope="module")
def template(tiny_model: Path) -> ChatTemplate:
    return ChatTemplate.load(tiny_model)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model)


def counted(rows: list[Encoded], template: ChatTemplate) -> list[str]:
    return [template.decode(row.input_ids[start:end]) for row in rows for start, end in row.spans]


def test_of_a_text_every_token_counts_but_the_first_which_nothing_foretells(template: ChatTemplate) -> None:
    (row,) = expected_rows(Passage("text", text=TEXT), template, WHOLE)
    assert row.input_ids == template.encode_text(TEXT).input_ids
    assert row.spans == [(1, len(row.input_ids))]


def test_of_turns_every_answer_counts_and_of_an_item_the_last_alone(template: ChatTemplate) -> None:
    talk = [ASKED, SAID, ASKED, BETTER]
    item = Item("item", talk[:-1], BETTER["content"], GraderSpec())
    assert counted(expected_rows(Passage("turns", turns=talk), template, WHOLE), template) == [
        "red",
        "grey as the cat",
    ]
    assert counted(expected_rows(item, template, WHOLE), template) == ["grey as the cat"]
    assert rejected_rows(item, template, WHOLE) == []


def test_of_a_pair_both_answers_count_and_nothing_before_them(template: ChatTemplate) -> None:
    assert counted(expected_rows(PAIR, template, WHOLE), template) == ["grey as the cat"]
    assert counted(rejected_rows(PAIR, template, WHOLE), template) == ["no answer"]


def test_a_long_text_is_read_piece_by_piece_or_where_so_configured_cut(template: ChatTemplate) -> None:
    ids = template.encode_text(TEXT).input_ids
    split = DataConfig(max_length=8, excess_length="split")
    rows = expected_rows(Passage("text", text=TEXT), template, split)
    assert [token for row in rows for token in row.input_ids] == ids
    assert [len(row.input_ids) for row in rows[:-1]] == [8] * (len(rows) - 1)
    assert all(row.spans == [(1, len(row.input_ids))] for row in rows)
    truncate = DataConfig(max_length=8, excess_length="truncate")
    assert expected_rows(Passage("text", text=TEXT), template, truncate) == rows[:1]


def test_where_the_limit_leaves_no_answer_nothing_is_measured(template: ChatTemplate, model: Any) -> None:
    short = DataConfig(max_length=8, excess_length="truncate")
    assert expected_rows(PAIR, template, short) == rejected_rows(PAIR, template, short) == []
    (found,) = Examiner(model, template, EvaluationConfig(), short).examine([PAIR])
    assert (found.loss_sum, found.loss_tokens, found.prefers_expected) == (None, None, None)


def test_losses_of_passages_are_those_that_transformers_reckons_one_by_one(
    model: Any, template: ChatTemplate
) -> None:
    passages = [Passage("text", text=TEXT), PAIR, Passage("turns", turns=[ASKED, SAID, ASKED, BETTER])]
    config = EvaluationConfig(per_device_eval_batch_size=2)
    found = Examiner(model, template, config).examine(passages)
    for passage, result in zip(passages, found, strict=True):
        (row,) = expected_rows(passage, template, WHOLE)
        nats = _loss(model, row)
        assert result.loss_sum == pytest.approx(nats, rel=1e-4)
        assert result.loss_tokens == row.assistant_tokens
    (rejected,) = rejected_rows(PAIR, template, WHOLE)
    assert found[1].loss is not None
    likelier = found[1].loss < _loss(model, rejected) / rejected.assistant_tokens
    assert [result.prefers_expected for result in found] == [None, likelier, None]
    turned = Passage("turned", given=PAIR.given, turns=PAIR.rejected, rejected=PAIR.turns)
    (other,) = Examiner(model, template, config).examine([turned])
    assert other.prefers_expected is not likelier


def test_a_passage_is_never_asked_for(
    model: Any, template: ChatTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    generate = model.generate

    def count(input_ids: torch.Tensor, **settings: Any) -> Any:
        asked.append(len(input_ids))
        return generate(input_ids=input_ids, **settings)

    monkeypatch.setattr(model, "generate", count)
    item = Item("item", [ASKED], "grey", GraderSpec())
    mixed: list[Examined] = [Passage("text", text=TEXT), item, PAIR]
    found = Examiner(model, template, EvaluationConfig(max_new_tokens=4)).examine(mixed)
    assert asked == [1]
    assert [result.answer is None for result in found] == [True, False, True]
    for result in (found[0], found[2]):
        assert (result.correct, result.says_expected, result.score, result.f1) == (None, None, None, None)
        assert (result.grader, result.expected, result.answer_tokens) == (None, None, None)
        assert result.loss is not None


def _loss(model: Any, row: Encoded) -> float:
    ids = torch.tensor([row.input_ids])
    with torch.no_grad():
        logits = model(ids).logits[0, :-1]
    labels = torch.tensor(row.labels[1:])
    return float(functional.cross_entropy(logits, labels, reduction="sum"))
