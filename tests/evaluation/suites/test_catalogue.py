"""The suites that come with trainbox."""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest

from evaluation.graders import grade
from evaluation.suites import Suite, load_suite, suite_names

SHA256 = {
    "everyday_facts": "5b8c1b98a01a47a3c233e20b5e96d2a50e41684bdcc44bcf17216653f09b0654",
    "everyday_formats": "dda21a7c5b67e5fbf5f53509d75e7a31777b66788a5b397eb71e286c969b3ead",
    "syllo_easy_100": "4fc5a1f53d34c391270d8ea91f29357fb8c942e354931d65377435308003dd3f",
    "syllo_medium_100": "66b9c51cbbe89ad20e43d23804c128bd63a6c8ed5243a05071109b36dfa01279",
    "syllo_hard_100": "0028eed3ad06c23d7b24784befbfb7cbdc50e4497c763940aad9c92e2a8192a1",
}
"""A changed suite makes all earlier results incomparable: then give it another name."""


@cache
def suite_named(name: str) -> Suite:
    return load_suite(name)


@pytest.mark.parametrize("name", suite_names())
def test_a_suite_stays_what_it_was(name: str) -> None:
    assert suite_named(name).sha256 == SHA256[name]


@pytest.mark.parametrize("name", suite_names())
def test_an_oracle_gets_every_item_right_and_a_stranger_none(name: str) -> None:
    items = suite_named(name).items
    assert [
        item.item_id for item in items if not grade(item.grader, item.expected, item.expected).correct
    ] == []
    strangers = [item.item_id for item in items if grade(item.grader, item.expected, "xyzzy 99999").correct]
    assert strangers == []


@pytest.mark.parametrize("level", ["easy", "medium", "hard"])
def test_a_suite_of_puzzles_has_a_hundred_of_its_level(level: str) -> None:
    items = suite_named(f"syllo_{level}_100").items
    assert Counter((item.level, item.grader.name) for item in items) == {(level, "syllo"): 100}


@pytest.mark.parametrize("name", ["everyday_facts", "everyday_formats"])
def test_an_everyday_suite_has_as_many_items_of_each_level(name: str) -> None:
    assert Counter(item.level for item in suite_named(name).items) == {"easy": 16, "medium": 16, "hard": 16}
