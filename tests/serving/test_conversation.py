"""What was said stays in the prompt for as long as it fits."""

from __future__ import annotations

from collections.abc import Sequence

from chat_template import Message
from serving.conversation import Conversation


def words(messages: Sequence[Message]) -> int:
    return sum(len(message["content"].split()) for message in messages)


def contents(messages: Sequence[Message]) -> list[str]:
    return [message["content"] for message in messages]


def test_what_was_said_is_part_of_the_next_prompt() -> None:
    talk = Conversation("be brief", words, 100)
    talk.remember("one", "two")
    assert contents(talk.ask("three")) == ["be brief", "one", "two", "three"]
    talk.reset()
    assert contents(talk.ask("three")) == ["be brief", "three"]


def test_the_oldest_turns_are_forgotten_first_and_never_the_system_prompt() -> None:
    talk = Conversation("be brief", words, 7)
    talk.remember("a a", "b")
    talk.remember("c", "d")
    assert contents(talk.ask("e e e")) == ["be brief", "c", "d", "e e e"]
    assert talk.turns == 1


def test_a_question_that_is_too_long_is_asked_alone() -> None:
    talk = Conversation(None, words, 3)
    talk.remember("a", "b")
    assert contents(talk.ask("c c c c c")) == ["c c c c c"]
