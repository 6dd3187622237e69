"""Prompts are told apart by what they ask for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.pattern_tracker import PATTERNS, pattern_of


@pytest.mark.parametrize(
    ("prompt", "pattern"),
    [
        ("Who was the first president?", "factual"),
        ("What is the capital of France?", "factual"),
        ("Define osmosis.", "factual"),
        ("Why is the sky blue?", "reasoning"),
        ("Who is taller? Explain step by step.", "factual"),
        ("If all cats are animals, then what is Tom?", "reasoning"),
        ("Write a short poem about rain.", "creative"),
        ("Write a python program that sorts a list", "coding"),
        ("What is the output of ```print(1)```?", "coding"),
        ("What is 12 * 7?", "math"),
        ("What is the sum of 3 and 4?", "math"),
        ("How many apples are left?", "math"),
        ("SYLLO puzzle 12\nDifficulty: hard\n(…)", "syllo_hard"),
        ("SYLLO puzzle 12", "syllo"),
        ("grey blue red", "other"),
        ("", "other"),
    ],
)
def test_the_first_kind_that_fits_is_taken(prompt: str, pattern: str) -> None:
    assert pattern_of(prompt) == pattern


@given(prompt=st.text() | st.text("whoif then1+2write poem\n", max_size=5000))
def test_any_prompt_is_of_a_kind(prompt: str) -> None:
    assert pattern_of(prompt) in PATTERNS or "SYLLO" in prompt
