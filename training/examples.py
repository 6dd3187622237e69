"""A few held-out prompts, answered at each evaluation so that a person can see the model learn."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import orjson

from chat_template import ChatTemplate, Message
from evaluation.generation import Generator
from intake.formats import Record
from monitoring.events import ExampleEvent
from training.daemon_link import DaemonLink


class HeldOutExamples:
    """The first chat records of a run's held-out file, each asked up to its last answer."""

    def __init__(
        self, records: Path, generator: Generator, template: ChatTemplate, count: int, link: DaemonLink
    ) -> None:
        self._generator = generator
        self._template = template
        self._link = link
        self._conversations = list(islice(_answered(records), count))

    def show(self, step: int) -> None:
        """Answer every prompt and send what was expected beside what came."""
        if not self._conversations:
            return
        golden = [self._tokens(messages[-1]["content"]) for messages in self._conversations]
        # An answer twice as long as the right one is wrong; what follows would only cost time.
        limit = min(self._max_new_tokens, 2 * max(golden) + 16)
        answers = self._generator.generate(
            [messages[:-1] for messages in self._conversations], max_new_tokens=limit
        )
        for messages, answer in zip(self._conversations, answers, strict=True):
            golden = messages[-1]["content"]
            self._link.emit(
                ExampleEvent(
                    step=step,
                    system_prompt=messages[0]["content"] if messages[0]["role"] == "system" else None,
                    prompt=messages[-2]["content"],
                    golden_answer=golden,
                    model_answer=answer.text,
                    answer_matches=answer.text.strip() == golden.strip(),
                    golden_tokens=len(self._template.tokenizer.encode(golden, add_special_tokens=False).ids),
                    model_tokens=answer.tokens,
                )
            )


def _answered(records: Path) -> list[list[Message]]:
    """Return the conversations that end with an answer in words, without tools."""
    if not records.exists():
        return []
    with open(records, "rb") as lines:
        parsed = [Record.from_json(orjson.loads(line)) for line in lines]
    return [
        list(record.messages)
        for record in parsed
        if record.kind == "chat"
        and record.tools is None
        and len(record.messages) > 1
        and record.messages[-1]["role"] == "assistant"
        and not any(message.get("tool_calls") for message in record.messages)
    ]
