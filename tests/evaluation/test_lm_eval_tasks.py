"""Tasks of lm-eval: what can be told without the extra."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from errors import UsageError
from evaluation.lm_eval_tasks import TaskScore, file_task, read_scores, task_of

FOUND = {
    "results": {
        "arc_easy": {
            "alias": "arc_easy",
            "sample_len": 40,
            "acc,none": 0.5,
            "acc_stderr,none": 0.08,
            "acc_norm,none": 0.25,
            "acc_norm_stderr,none": "N/A",
        },
        "gsm8k": {
            "exact_match,strict-match": 0.1,
            "exact_match_stderr,strict-match": 0.01,
            "odd,none": float("nan"),
        },
    },
    "n-samples": {"arc_easy": {"original": 2376, "effective": 40}},
}


def test_every_number_of_a_task_is_read_with_its_error_and_what_is_none_is_left_out() -> None:
    assert read_scores(FOUND) == [
        TaskScore("arc_easy", "acc", 0.5, 0.08, 40),
        TaskScore("arc_easy", "acc_norm", 0.25, None, 40),
        TaskScore("gsm8k", "exact_match,strict-match", 0.1, 0.01, None),
    ]


def test_without_the_extra_a_task_is_answered_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'trainbox\[lm-eval\]'"):
        task_of("lm-eval:hellaswag")
    assert task_of("everyday_facts") is None


def test_a_task_is_named_by_its_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("doc_to_text: !function parts.text\ntask: 'my_task' # ours\n", encoding="utf-8")
    assert file_task(file) == "my_task"
    for content in ("group: several\n", "task:\n  - one\n"):
        file.write_text(content, encoding="utf-8")
        with pytest.raises(UsageError, match="task: NAME"):
            file_task(file)
    with pytest.raises(UsageError, match=r"none\.yaml"):
        file_task(tmp_path / "none.yaml")
