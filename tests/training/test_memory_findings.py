"""How many records memory held is known to the next run, under the same circumstances only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from config import Paths
from training.memory_findings import Circumstances, Finding, MemoryFindings, RunMemory, length_bucket

GPU = Circumstances(
    purpose="training",
    base_sha256="ab" * 32,
    device="RTX 4090 25386352640",
    kind="chat",
    length_bucket=2048,
    lora_r=16,
    precision="bfloat16",
    load_in_4bit=False,
    gradient_checkpointing=False,
)


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    made = Paths(tmp_path / "base")
    made.create()
    return made


def test_a_finding_outlives_the_process_and_is_used(paths: Paths) -> None:
    MemoryFindings(paths).remember(GPU, Finding(configured=8, fitting=2))
    findings = MemoryFindings(paths)
    assert findings.size_for(GPU, configured=8) == 2
    assert findings.size_for(GPU, configured=1) == 1


def test_a_larger_batch_than_the_one_that_failed_is_tried_anew(paths: Paths) -> None:
    findings = MemoryFindings(paths)
    findings.remember(GPU, Finding(configured=8, fitting=2))
    assert findings.size_for(GPU, configured=16) == 16


@pytest.mark.parametrize(
    "change",
    [
        {"base_sha256": "cd" * 32},
        {"device": "H200 150754820096"},
        {"kind": "preference"},
        {"length_bucket": 4096},
        {"lora_r": 64},
        {"precision": "float32"},
        {"load_in_4bit": True},
        {"gradient_checkpointing": True},
        {"purpose": "evaluation"},
    ],
)
def test_a_change_of_any_circumstance_forgets_the_finding_and_going_back_remembers_it(
    change: dict[str, Any], paths: Paths
) -> None:
    findings = MemoryFindings(paths)
    findings.remember(GPU, Finding(configured=8, fitting=2))
    assert findings.size_for(replace(GPU, **change), configured=8) == 8
    findings.remember(replace(GPU, **change), Finding(configured=8, fitting=4))
    assert findings.size_for(GPU, configured=8) == 2


@pytest.mark.parametrize("content", ["{", "[]", '{"findings": {"a": 1}}'])
def test_a_damaged_file_is_passed_over_and_replaced(
    content: str, paths: Paths, caplog: pytest.LogCaptureFixture
) -> None:
    paths.memory_findings.write_text(content, encoding="utf-8")
    findings = MemoryFindings(paths)
    assert findings.size_for(GPU, configured=8) == 8
    assert "damaged memory_findings.json" in caplog.text
    findings.remember(GPU, Finding(configured=8, fitting=4))
    assert findings.size_for(GPU, configured=8) == 4


def test_a_run_says_where_it_begins_with_less_than_configured(paths: Paths) -> None:
    circumstances = {"training": GPU, "evaluation": replace(GPU, purpose="evaluation")}
    memory = RunMemory(MemoryFindings(paths), circumstances, {"training": 8, "evaluation": 4})  # type: ignore[arg-type]
    assert memory.notes() == []
    memory.remember("training", 2)
    (note,) = memory.notes()
    assert "2 records in one pass of training instead of 8" in note
    assert (memory.size_for("training"), memory.size_for("evaluation")) == (2, 4)


@pytest.mark.parametrize(("tokens", "bucket"), [(1, 1), (2, 2), (3, 4), (1024, 1024), (1025, 2048)])
def test_lengths_are_rounded_up_to_a_power_of_two(tokens: int, bucket: int) -> None:
    assert length_bucket(tokens) == bucket
