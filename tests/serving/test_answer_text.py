"""Text that is handed out stays as it is: no half characters, nothing of a stop sequence."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chat_template import ChatTemplate
from serving.answer_text import AnswerText


@pytest.fixture(scope="module")
def template(tiny_model: Path) -> ChatTemplate:
    return ChatTemplate.load(tiny_model)


def pieces(template: ChatTemplate, text: str, stops: list[str]) -> tuple[list[str], AnswerText]:
    answer = AnswerText(template.decode, stops)
    given = []
    for token in template.tokenizer.encode(text, add_special_tokens=False).ids:
        given.append(answer.add(token))
        if answer.is_stopped:
            break
    return [*given, answer.end()], answer


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tokens=st.lists(st.integers(min_value=0, max_value=330), max_size=40))
def test_the_pieces_of_any_answer_add_up_to_the_whole(template: ChatTemplate, tokens: list[int]) -> None:
    answer = AnswerText(template.decode)
    parts = [answer.add(token) for token in tokens]
    assert "".join([*parts, answer.end()]) == template.decode(tokens)


def test_a_character_of_several_tokens_comes_whole(template: ChatTemplate) -> None:
    parts, _ = pieces(template, "grün 🌧 rain", [])
    assert "".join(parts) == "grün 🌧 rain"
    assert not any("�" in part for part in parts)


@pytest.mark.parametrize("stop", ["warm", "the w", " mat", "t on the", "on the warm mat"])
def test_nothing_of_a_stop_sequence_is_handed_out(template: ChatTemplate, stop: str) -> None:
    whole = "the cat sat on the warm mat"
    parts, answer = pieces(template, whole, [stop, "never said"])
    assert answer.is_stopped
    assert "".join(parts) == answer.text == whole.partition(stop)[0]


def test_what_only_began_like_a_stop_sequence_comes_at_the_end(template: ChatTemplate) -> None:
    parts, answer = pieces(template, "the cat sat", ["sat on"])
    assert not answer.is_stopped
    assert "".join(parts) == "the cat sat"
    assert "sat" not in "".join(parts[:-1])


def test_the_first_of_several_stop_sequences_ends_the_answer(template: ChatTemplate) -> None:
    parts, _ = pieces(template, "red, green, blue", ["blue", "green"])
    assert "".join(parts) == "red, "
