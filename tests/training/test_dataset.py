"""Accepted records become rows of token ids; what is trained is exactly what the assistant said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from chat_template import IGNORE, ChatTemplate
from config import DataConfig
from errors import JobFailed
from intake.formats import Record
from training.dataset import TokenRows, prove_labels, tokenise_run


@pytest.fixture(scope="module")
def template(tiny_model: Path) -> ChatTemplate:
    return ChatTemplate.load(tiny_model)


@pytest.fixture
def tokenise(tmp_path: Path, template: ChatTemplate) -> Callable[..., TokenRows]:
    def build(records: Sequence[Record], template_key: str = "key", **settings: Any) -> TokenRows:
        source = tmp_path / "train.jsonl"
        source.write_bytes(b"".join(orjson.dumps(record.to_json()) + b"\n" for record in records))
        return tokenise_run(
            *(tmp_path / "tokens", {"train": source}, template, template_key, DataConfig(**settings)),
            on_progress=lambda done: None,
        )["train"]

    return build


def chat(line: int, *turns: str) -> Record:
    roles = ("user", "assistant")
    messages = [{"role": roles[at % 2], "content": text} for at, text in enumerate(turns)]
    return Record(line=line, kind="chat", messages=messages)


def trained(rows: TokenRows, template: ChatTemplate, number: int, sequence: int = 0) -> str:
    row = rows.dataset[number]
    ids = [int(token) for token in row["labels"][sequence] if token != IGNORE]
    return template.decode(ids, skip_special=False)


def test_all_answers_and_their_ends_are_trained_and_nothing_else(
    tokenise: Callable[..., TokenRows], template: ChatTemplate
) -> None:
    rows = tokenise([chat(1, "what colour", "the cat", "and now", "grey")])
    assert trained(rows, template, 0) == "the cat<|im_end|>grey<|im_end|>"
    assert rows.facts.trained_tokens == sum(label != IGNORE for label in rows.dataset[0]["labels"][0])


def test_plain_text_is_trained_whole(tokenise: Callable[..., TokenRows], template: ChatTemplate) -> None:
    rows = tokenise([Record(line=1, kind="text", text="the rain")])
    assert trained(rows, template, 0) == "the rain<|im_end|>"


def test_a_pair_trains_its_two_answers_and_nothing_of_its_prompt(
    tokenise: Callable[..., TokenRows], template: ChatTemplate
) -> None:
    prompt = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "said before"},
        {"role": "user", "content": "two"},
    ]
    answers = {name: [{"role": "assistant", "content": name}] for name in ("chosen", "rejected")}
    rows = tokenise([Record(line=1, kind="preference", prompt=prompt, **answers)])  # type: ignore[arg-type]
    assert rows.facts.kind == "preference"
    assert trained(rows, template, 0, 0) == "chosen<|im_end|>"
    assert trained(rows, template, 0, 1) == "rejected<|im_end|>"


def test_rows_keep_the_order_and_the_lengths_of_the_records(tokenise: Callable[..., TokenRows]) -> None:
    records = [chat(line, "the rain " * (line % 7), "grey") for line in range(1, 600)]
    rows = tokenise(records)
    assert len(rows) == rows.facts.records == 599
    assert [row["line"] for row in rows.dataset] == [record.line for record in records]
    assert rows.lengths.tolist() == [len(row["input_ids"][0]) for row in rows.dataset]
    assert rows.facts.tokens == rows.lengths.sum()


@pytest.mark.config_key("data.excess_length", "data.max_length")
def test_a_long_record_is_cut_or_split_as_configured(
    tokenise: Callable[..., TokenRows], template: ChatTemplate
) -> None:
    records = [chat(1, "short", "grey"), chat(2, "question", "the rain " * 30)]
    whole = tokenise(records)
    assert len(whole) == 2
    cut = tokenise(records, max_length=30, excess_length="truncate")
    assert (len(cut), cut.facts.cut_records, cut.lengths.max()) == (2, 1, 30)
    split = tokenise(records, max_length=30, excess_length="split")
    assert len(split) > 2
    pieces = [trained(split, template, number) for number in range(1, len(split))]
    assert "".join(pieces) == trained(whole, template, 1) or len(pieces) > 1
    assert split.facts.tokens == whole.facts.tokens
    longer = tokenise(records, max_length=40, excess_length="truncate")
    assert longer.lengths.max() == 40


def test_a_record_with_nothing_trained_left_is_counted_and_left_out(
    tokenise: Callable[..., TokenRows],
) -> None:
    rows = tokenise([chat(1, "the rain " * 30, "grey")], max_length=20, excess_length="truncate")
    assert (len(rows), rows.facts.lost_records) == (0, 1)


def test_tokens_are_made_once_and_again_when_what_they_are_made_of_changes(
    tokenise: Callable[..., TokenRows], tmp_path: Path
) -> None:
    records = [chat(1, "one", "grey")]
    tokenise(records)
    made = (tmp_path / "tokens" / "train.arrow").stat().st_mtime_ns
    tokenise(records)
    assert (tmp_path / "tokens" / "train.arrow").stat().st_mtime_ns == made
    tokenise(records, template_key="another")
    assert (tmp_path / "tokens" / "train.arrow").stat().st_mtime_ns != made
    assert len(tokenise([*records, chat(2, "two", "red")])) == 2


def test_tokens_of_a_torn_folder_are_made_again(tokenise: Callable[..., TokenRows], tmp_path: Path) -> None:
    records = [chat(1, "one", "grey")]
    tokenise(records)
    arrow = tmp_path / "tokens" / "train.arrow"
    arrow.write_bytes(arrow.read_bytes()[:-10])
    assert len(tokenise(records)) == 1


def test_a_label_outside_the_answer_fails_the_job_before_the_first_step(template: ChatTemplate) -> None:
    record = chat(7, "what colour", "the cat")
    encoded = template.encode_messages(record.messages)
    labels = list(encoded.labels)
    prove_labels(record, [(encoded.input_ids, labels)], template)
    start = encoded.spans[0][0]
    for wrong in (
        [*labels[: start - 4], *encoded.input_ids[start - 4 : start], *labels[start:]],
        [*labels[:start], IGNORE, *labels[start + 1 :]],
    ):
        with pytest.raises(JobFailed, match="line 7"):
            prove_labels(record, [(encoded.input_ids, wrong)], template)


def test_an_answer_whose_end_is_not_trained_fails_the_job(template: ChatTemplate) -> None:
    record = chat(7, "what colour", "the cat")
    encoded = template.encode_messages(record.messages)
    end = encoded.spans[0][1]
    labels = [*encoded.labels[: end - 1], IGNORE, *encoded.labels[end:]]
    with pytest.raises(JobFailed, match="the end of an answer"):
        prove_labels(record, [(encoded.input_ids, labels)], template)


def test_a_record_without_an_answer_is_not_tokenised(tokenise: Callable[..., TokenRows]) -> None:
    unanswered = replace(chat(3, "what colour", "x"), messages=[{"role": "user", "content": "what colour"}])
    with pytest.raises(JobFailed, match="line 3"):
        tokenise([unanswered])
