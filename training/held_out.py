"""Records that are kept for evaluation: never trained, by any later file either, and shown being answered."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

import durable
from chat_template import ChatTemplate, Message
from config import EvaluationConfig, Paths
from intake.formats import Record
from monitoring.events import ExampleEvent
from training.daemon_link import DaemonLink

if TYPE_CHECKING:  # records are kept without torch; only showing them needs what generates answers
    from evaluation.generation import Generator


def held_out_keys(paths: Paths) -> frozenset[bytes]:
    """Return the keys of the records that any file so far has held out."""
    return frozenset(record.key() for file in paths.held_out.glob("*.jsonl") for record in _read(file))


def keep_held_out(paths: Paths, job_id: str) -> None:
    """Copy the held-out records of a run to where they stay when the run is removed; safe to repeat."""
    source = paths.run(job_id).held_out_records
    if source.exists():
        durable.copy_once(source, paths.held_out / f"{job_id}.jsonl")


class HeldOutExamples:
    """The first conversations of a run's held-out file, each asked up to its last answer."""

    def __init__(
        self,
        records: Path,
        generator: Generator,
        template: ChatTemplate,
        config: EvaluationConfig,
        link: DaemonLink,
    ) -> None:
        self._generator = generator
        self._template = template
        self._config = config
        self._link = link
        self._conversations = list(islice(_answered(records), config.sample_prompts))

    def show(self, step: int) -> None:
        """Answer every prompt and send what was expected beside what came."""
        if not self._conversations:
            return
        golden = [messages[-1]["content"] for messages in self._conversations]
        golden_tokens = [
            len(self._template.tokenizer.encode(text, add_special_tokens=False).ids) for text in golden
        ]
        # An answer twice as long as the right one is wrong; what would follow only costs time.
        limit = min(self._config.max_new_tokens, 2 * max(golden_tokens) + 16)
        answers = self._generator.generate(
            [messages[:-1] for messages in self._conversations], max_new_tokens=limit
        )
        for messages, tokens, answer in zip(self._conversations, golden_tokens, answers, strict=True):
            self._link.emit(
                ExampleEvent(
                    step=step,
                    system_prompt=messages[0]["content"] if messages[0]["role"] == "system" else None,
                    prompt=messages[-2]["content"],
                    golden_answer=messages[-1]["content"],
                    model_answer=answer.text,
                    answer_matches=answer.text.strip() == messages[-1]["content"].strip(),
                    golden_tokens=tokens,
                    model_tokens=answer.tokens,
                )
            )


def _answered(records: Path) -> list[list[Message]]:
    """Return the conversations that end with an answer in words, without tools."""
    return [
        list(record.messages)
        for record in _read(records)
        if record.kind == "chat"
        and record.tools is None
        and len(record.messages) > 1
        and record.messages[-1]["role"] == "assistant"
        and not any(message.get("tool_calls") for message in record.messages)
    ]


def _read(file: Path) -> list[Record]:
    if not file.exists():
        return []
    with open(file, "rb") as lines:
        return [Record.from_json(orjson.loads(line)) for line in lines]
