"""Hostile files in a living daemon; `make crash` drops all of them, here it is every twelfth."""

from __future__ import annotations

from tests.crash import bad_inputs


def test_hostile_files_are_rejected_with_the_reason_and_change_nothing_else() -> None:
    tally = bad_inputs.run(every=12)
    assert tally.failures == []
    assert tally.bad_inputs >= 20


def test_there_are_more_than_two_hundred_hostile_names_and_all_differ() -> None:
    names = list(bad_inputs.hostile_names())
    assert len(set(names)) == len(names) > 200
