"""The suites that come with trainbox."""

from __future__ import annotations

from collections import Counter

import pytest

from evaluation.graders import grade
from evaluation.suites import load_suite, suite_names

SHA256 = {
    "everyday_facts": "5b8c1b98a01a47a3c233e20b5e96d2a50e41684bdcc44bcf17216653f09b0654",
    "everyday_formats": "dda21a7c5b67e5fbf5f53509d75e7a31777b66788a5b397eb71e286c969b3ead",
}
"""A changed suite makes all earlier results incomparable: then give it another name."""


@pytest.mark.parametrize("name", SHA256)
def test_a_suite_stays_what_it_was(name: str) -> None:
    assert load_suite(name).sha256 == SHA256[name]


@pytest.mark.parametrize("name", suite_names())
def test_an_oracle_gets_every_item_right_and_a_stranger_none(name: str) -> None:
    items = load_suite(name).items
    assert [
        item.item_id for item in items if not grade(item.grader, item.expected, item.expected).correct
    ] == []
    strangers = [item.item_id for item in items if grade(item.grader, item.expected, "xyzzy 99999").correct]
    assert strangers == []


@pytest.mark.parametrize("name", ["everyday_facts", "everyday_formats"])
def test_an_everyday_suite_has_as_many_items_of_each_level(name: str) -> None:
    assert Counter(item.level for item in load_suite(name).items) == {"easy": 16, "medium": 16, "hard": 16}
