"""The files of suite runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from errors import IntegrityError
from evaluation.items import ItemResult
from training.suite_records import RecordKeeper, SuiteHeader, read_records, record_files


def header(**fields: Any) -> SuiteHeader:
    return SuiteHeader.model_validate(
        {
            "model": "v0001",
            "model_sha256": "a",
            "tokenizer_sha256": "b",
            "suite": "facts",
            "title": "Facts",
            "suite_sha256": "c",
            "items": 3,
            "precision": "auto",
            "load_in_4bit": False,
            "max_new_tokens": 64,
            "max_generation_seconds": 60.0,
            **fields,
        }
    )


def result(name: str) -> ItemResult:
    return ItemResult(
        item_id=name, grader="exact", expected="yes", answer="no \n ü", correct=False, score=0.0
    )


def test_what_was_written_is_known_to_the_next_run_of_the_same_settings_alone(tmp_path: Path) -> None:
    keeper = RecordKeeper(tmp_path, header())
    keeper.add([result("one"), result("two")])
    assert RecordKeeper(tmp_path, header()).results == {"one": result("one"), "two": result("two")}
    others = [
        RecordKeeper(tmp_path, header(**change))
        for change in (
            {"model_sha256": "z"},
            {"suite_sha256": "z"},
            {"max_new_tokens": 65},
            {"precision": "x"},
        )
    ]
    assert [other.results for other in others] == [{}] * 4
    assert len({keeper.file, *(other.file for other in others)}) == 5
    assert record_files(tmp_path) == [keeper.file]
    assert read_records(keeper.file).header == header()


def test_half_a_line_is_asked_again(tmp_path: Path) -> None:
    keeper = RecordKeeper(tmp_path, header())
    keeper.add([result("one"), result("two")])
    whole = keeper.file.read_bytes()
    keeper.file.write_bytes(whole[:-10])
    again = RecordKeeper(tmp_path, header())
    assert again.results == {"one": result("one")}
    again.add([result("two")])
    assert keeper.file.read_bytes() == whole


@pytest.mark.parametrize("content", [b"", b"{}\n", b"text\n", b'{"model": 5}\n'])
def test_a_file_without_a_header_is_named_as_damaged(tmp_path: Path, content: bytes) -> None:
    keeper = RecordKeeper(tmp_path, header())
    keeper.add([result("one")])
    keeper.file.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"facts-.*\.jsonl: not the results of a suite"):
        RecordKeeper(tmp_path, header())


def test_a_damaged_line_in_the_middle_is_named_as_damaged(tmp_path: Path) -> None:
    keeper = RecordKeeper(tmp_path, header())
    keeper.add([result("one"), result("two")])
    keeper.file.write_bytes(keeper.file.read_bytes().replace(b'"one"', b'"one'))
    with pytest.raises(IntegrityError, match="damaged"):
        read_records(keeper.file)


def test_a_suite_of_any_name_has_a_file_in_its_models_folder(tmp_path: Path) -> None:
    keeper = RecordKeeper(tmp_path, header(suite="../../etc/pass wd\n" + "x" * 300))
    keeper.add([result("one")])
    assert keeper.file.parent == tmp_path / "v0001"
    assert record_files(tmp_path) == [keeper.file]
