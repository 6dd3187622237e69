"""What `current` answers worse than a version before it is said once, for as long as it is so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from evaluation.items import ItemResult
from tests.daemon_base import Base
from tests.waiting import wait_until
from training.regressions import Regressions
from training.suite_records import RecordKeeper, SuiteHeader
from training.versions import VersionStore


def put_to(
    evaluations: Any, model: str, right: Sequence[bool], suite: str = "capitals", max_new_tokens: int = 64
) -> RecordKeeper:
    """Write the results of a suite run as `trainbox bench` does."""
    header = SuiteHeader(
        model=model,
        model_sha256="ab" * 32,
        tokenizer_sha256="cd" * 32,
        suite=suite,
        title=suite,
        suite_sha256=f"{suite:0<64}",
        items=len(right),
        precision="float32",
        load_in_4bit=False,
        max_new_tokens=max_new_tokens,
        max_generation_seconds=60.0,
    )
    keeper = RecordKeeper(evaluations, header)
    keeper.add(
        [
            ItemResult(item_id=f"item-{number}", grader="exact", expected="x", correct=is_right)
            for number, is_right in enumerate(right)
        ]
    )
    return keeper


@pytest.fixture
def lineage(shelf: Any) -> Any:
    """Versions of which v0008 continues v0007 and is current."""
    first = shelf.add()
    second = shelf.add(parent=first.name)
    assert (first.name, second.name) == ("v0007", "v0008")
    shelf.store.promote(second.name, "test", pinned=False)
    return shelf


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Base]:
    made = Base(tmp_path / "base")
    yield made
    made.close()


def test_a_suite_that_got_significantly_worse_is_named_with_its_numbers(lineage: Any) -> None:
    put_to(lineage.paths.evaluations, "v0007", [True] * 20)
    put_to(lineage.paths.evaluations, "v0008", [True] * 12 + [False] * 8)
    (said,) = Regressions(lineage.paths, lineage.store).look() or ()
    # Eight lost and none gained: 1 / 2⁸.
    assert said == "v0008 answers 12 of 20 of capitals right, v0007 answered 20 (p 0.0039)"


def test_what_chance_explains_is_no_regression(lineage: Any) -> None:
    put_to(lineage.paths.evaluations, "v0007", [True] * 10 + [False] * 10)
    put_to(lineage.paths.evaluations, "v0008", [False] * 6 + [True] * 8 + [False] * 6)
    assert Regressions(lineage.paths, lineage.store).look() == ()


def test_many_suites_make_no_false_alarm_likelier(lineage: Any) -> None:
    for number in range(5):
        put_to(lineage.paths.evaluations, "v0007", [True] * 20, f"suite-{number}")
        answers = [True] * 15 + [number > 0] * 5
        put_to(lineage.paths.evaluations, "v0008", answers, f"suite-{number}")
    assert Regressions(lineage.paths, lineage.store).look() == ()  # 1 / 2⁵ is not below 0.05 / 5


def test_only_suites_that_both_have_answered_are_compared(lineage: Any) -> None:
    put_to(lineage.paths.evaluations, "v0007", [True] * 20, "capitals")
    put_to(lineage.paths.evaluations, "v0008", [False] * 20, "sums")
    assert Regressions(lineage.paths, lineage.store).look() == ()


def test_answers_given_under_other_settings_are_not_compared(lineage: Any) -> None:
    put_to(lineage.paths.evaluations, "v0007", [True] * 20, max_new_tokens=768)
    put_to(lineage.paths.evaluations, "v0008", [False] * 20, max_new_tokens=16)
    regressions = Regressions(lineage.paths, lineage.store)
    assert regressions.look() == ()
    put_to(lineage.paths.evaluations, "v0008", [False] * 20, max_new_tokens=768)
    assert len(regressions.look() or ()) == 1


def test_nothing_is_read_again_while_nothing_changes(lineage: Any) -> None:
    put_to(lineage.paths.evaluations, "v0007", [True] * 20)
    regressions = Regressions(lineage.paths, lineage.store)
    assert regressions.look() == ()
    assert regressions.look() is None
    put_to(lineage.paths.evaluations, "v0008", [False] * 20)
    assert len(regressions.look() or ()) == 1
    lineage.store.promote("v0007", "back", pinned=True)
    assert regressions.look() == ()


def test_a_damaged_file_is_left_out_and_told(lineage: Any, caplog: pytest.LogCaptureFixture) -> None:
    put_to(lineage.paths.evaluations, "v0007", [True] * 20)
    put_to(lineage.paths.evaluations, "v0008", [False] * 20).file.write_bytes(b"{}\n")
    assert Regressions(lineage.paths, lineage.store).look() == ()
    assert "run the suite again" in caplog.text


def test_a_daemon_raises_the_alert_and_it_goes_when_current_goes_back(base: Base) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        base.drop(name)
        base.run()
    daemon = base.start()
    put_to(base.paths.evaluations, "v0001", [True] * 20)
    put_to(base.paths.evaluations, "v0002", [False] * 20)

    def raised() -> list[str]:
        return [alert.category for alert in base.status.active_alerts] if base.status else []

    wait_until(lambda: "regression" in raised())
    VersionStore(base.paths).promote("v0001", "went back", pinned=True)
    wait_until(lambda: "regression" not in raised())
    assert "Alert regression raised: v0002 answers 0 of 20 of capitals right" in base.end(daemon)
