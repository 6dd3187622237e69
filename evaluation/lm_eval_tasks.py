"""EleutherAI's lm-eval tasks, put to a model that is loaded already; the package is an optional extra."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errors import UsageError

PREFIX = "lm-eval:"
"""What a suite's name begins with where it means one of these tasks."""


@dataclass(frozen=True, slots=True)
class TaskScore:
    """One number that a task gives."""

    task: str
    metric: str
    """As lm-eval calls it, with its filter: ``acc`` or ``exact_match,strict-match``."""
    value: float
    standard_error: float | None
    samples: int | None


def task_of(suite: str) -> str | None:
    """Return the task that a suite's name means, or None where it means none; UsageError without the extra.

    A task is named as lm-eval does, or by the path of its YAML file.
    """
    if not suite.startswith(PREFIX):
        return None
    if importlib.util.find_spec("lm_eval") is None:
        raise UsageError(
            f"{suite}: found no package lm_eval, expected it for tasks of lm-eval; install it with: "
            "pip install 'trainbox[lm-eval]'"
        )
    return suite.removeprefix(PREFIX)


def run_lm_eval(
    model: Any, tokenizer: Any, tasks: Sequence[str], *, batch_size: int, limit: int | None = None
) -> list[TaskScore]:
    """Put tasks to a transformers or PEFT model, at most `limit` documents of each.

    The chat template of `tokenizer` is applied. lm-eval loads the data of a task from the Hugging Face hub,
    or from where its YAML file says. Raises UsageError when there is no such task.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    files = [Path(task) for task in tasks if is_file(task)]
    manager = TaskManager(include_path=sorted({str(file.parent.resolve()) for file in files}) or None)
    names = [file_task(Path(task)) if is_file(task) else task for task in tasks]
    unknown = [name for name in names if name not in manager.all_tasks]
    if unknown:
        raise UsageError(
            f"{PREFIX}{unknown[0]}: found no such task, expected one that `lm-eval ls tasks` lists, or the "
            "path of a YAML file"
        )
    was_training = model.training
    model.eval()
    try:
        found = simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
            tasks=names,
            limit=limit,
            task_manager=manager,
            apply_chat_template=True,
            bootstrap_iters=1000,
            log_samples=False,
        )
    finally:
        model.train(was_training)
    assert found is not None, "lm-eval gives no results to any process but the first"
    return read_scores(found)


def is_file(task: str) -> bool:
    """Tell whether a task is named by its file."""
    return task.endswith((".yaml", ".yml"))


def file_task(file: Path) -> str:
    """Return the name that a task's YAML file gives it; UsageError when it gives none."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UsageError(f"{PREFIX}{file}: {error.strerror}; expected the YAML file of a task") from error
    # Such files hold tags of lm-eval's own, which a safe loader refuses.
    names = [line.partition(":")[2].split("#")[0].strip(" '\"") for line in lines if line.startswith("task:")]
    if len(names) != 1 or not names[0]:
        raise UsageError(f"{PREFIX}{file}: found no line 'task: NAME', expected the YAML file of a task")
    return names[0]


def read_scores(found: Mapping[str, Any]) -> list[TaskScore]:
    """Return the numbers in what lm-eval gives back, by task, in its order; what is no number is left out."""
    scores = []
    for task, values in found["results"].items():
        samples = found.get("n-samples", {}).get(task, {}).get("effective")
        for key, value in values.items():
            metric, _, filtered = key.partition(",")
            if metric.endswith("_stderr") or not filtered or not _is_number(value):
                continue
            error = values.get(f"{metric}_stderr,{filtered}")
            scores.append(
                TaskScore(
                    task=task,
                    metric=metric if filtered == "none" else key,
                    value=float(value),
                    standard_error=float(error) if _is_number(error) else None,
                    samples=samples,
                )
            )
    return scores


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
