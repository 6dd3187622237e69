"""The results of suites in the ledger."""

from __future__ import annotations

from typing import Any

from evaluation.items import ItemResult
from tests.training.ledger.run_folders import Folder
from training.ledger.database import Database, list_suite_results
from training.ledger.evaluations import record_evaluations
from training.ledger.following import Follower
from training.ledger.upkeep import ledger_differences, rebuild_ledger
from training.suite_records import RecordKeeper, SuiteHeader


def keeper_of(folder: Folder, model: str = "v0001") -> RecordKeeper:
    header = SuiteHeader(
        model=model,
        model_sha256="a",
        tokenizer_sha256="b",
        suite="facts",
        title="Facts",
        suite_sha256="c",
        items=3,
        precision="auto",
        load_in_4bit=False,
        max_new_tokens=64,
        max_generation_seconds=60,
    )
    return RecordKeeper(folder.paths.evaluations, header)


def answered(name: str, correct: bool, level: str | None = "easy") -> ItemResult:
    return ItemResult(
        item_id=name,
        level=level,
        grader="exact",
        expected="y",
        answer="n",
        correct=correct,
        score=float(correct),
    )


def rows(folder: Folder) -> list[dict[str, Any]]:
    with Database(folder.paths, folder.config.ledger).transaction() as connection:
        return list_suite_results(connection)


def shares(folder: Folder) -> list[tuple[str, str, int, int]]:
    return [(row["model"], row["level"], row["correct"], row["items"]) for row in rows(folder)]


def test_results_are_recorded_by_level_and_over_all_and_follow_their_file(folder: Folder) -> None:
    keeper = keeper_of(folder)
    keeper.add([answered("one", True), answered("two", False, None)])
    assert record_evaluations(folder.paths, folder.config) is None
    assert shares(folder) == [("v0001", "", 1, 2), ("v0001", "-", 0, 1), ("v0001", "easy", 1, 1)]
    assert {(row["suite"], row["suite_items"], row["format_rate"]) for row in rows(folder)} == {
        ("facts", 3, None)
    }
    keeper.add([answered("three", True)])
    assert ledger_differences(folder.paths, folder.config) != []
    assert record_evaluations(folder.paths, folder.config) is None
    assert shares(folder)[0] == ("v0001", "", 2, 3)
    assert ledger_differences(folder.paths, folder.config) == []
    keeper.file.unlink()
    assert record_evaluations(folder.paths, folder.config) is None
    assert rows(folder) == []


def test_a_rebuild_and_a_starting_daemon_make_the_same_rows(folder: Folder) -> None:
    keeper_of(folder).add([answered("one", True)])
    keeper_of(folder, "v0002").add([answered("one", False)])
    rebuild_ledger(folder.paths, folder.config)
    rebuilt = rows(folder)
    assert len(rebuilt) == 4
    with Database(folder.paths, folder.config.ledger).transaction() as connection:
        connection.exec_driver_sql("DELETE FROM suite_results")
    Follower(folder.paths, folder.config.ledger).write(set())
    assert rows(folder) == rebuilt


def test_a_damaged_file_has_no_rows_and_hinders_nothing(sqlite_folder: Folder) -> None:
    keeper_of(sqlite_folder).add([answered("one", True)])
    damaged = keeper_of(sqlite_folder, "v0002")
    damaged.add([answered("one", True)])
    damaged.file.write_bytes(b"nonsense\n")
    assert record_evaluations(sqlite_folder.paths, sqlite_folder.config) is None
    assert {row["model"] for row in rows(sqlite_folder)} == {"v0001"}


def test_a_ledger_that_cannot_be_written_is_named_and_made_up_for(sqlite_folder: Folder) -> None:
    keeper_of(sqlite_folder).add([answered("one", True)])
    sqlite_folder.paths.ledger.mkdir()
    trouble = record_evaluations(sqlite_folder.paths, sqlite_folder.config)
    assert trouble is not None and "ledger.db" in trouble
    sqlite_folder.paths.ledger.rmdir()
    assert record_evaluations(sqlite_folder.paths, sqlite_folder.config) is None
    assert len(rows(sqlite_folder)) == 2
