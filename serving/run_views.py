"""What is shown of one run: its checkpoints, and how the answers to its prompts evolved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, get_args

import durable
from config import Config, Paths
from errors import IntegrityError
from serving.documents import Answer, CheckpointMark, Checkpoints, Evolution, ExampleEvolution, JobMetrics
from serving.run_metrics import CurvesOfRuns
from training.checkpoint_scorer import Selection
from training.checkpoints import CheckpointEntry, describe
from training.ledger.sources import read_config, section

T = TypeVar("T")


class RunViews:
    """Reads run folders for a page."""

    def __init__(self, paths: Paths, config: Config) -> None:
        self._paths = paths
        self._config = config
        self._curves = CurvesOfRuns(paths)

    def checkpoints(self, job_id: str) -> Checkpoints:
        """Return the whole checkpoints of a run, newest step first."""
        entries = self._entries(job_id)
        best = next((entry for entry in entries if entry.is_best), None)
        message = None if entries else "no checkpoint yet"
        return Checkpoints(job_id=job_id, checkpoints=entries, best_checkpoint=best, message=message)

    def metrics(self, job_id: str, max_points: int) -> JobMetrics:
        """Return the curves of a run with at most `max_points` rows each, and its checkpoints' places."""
        points, steps, evaluations = self._curves.of(job_id).columns(max_points)
        marks = [
            CheckpointMark(step=one.step, eval_loss=one.eval_loss, score=one.score, is_best=one.is_best)
            for one in self._entries(job_id)
        ]
        return JobMetrics(
            job_id=job_id,
            points=points,
            steps=steps,
            evaluations=evaluations,
            checkpoints=_evenly(marks[::-1], max_points, lambda mark: mark.is_best),
        )

    def evolution(self, job_id: str, max_answers: int) -> Evolution:
        """Return the answers to each prompt at up to `max_answers` steps, first and last included."""
        folder = self._paths.run(job_id).evolution
        files = sorted(folder.glob("step_*.json"), key=lambda path: int(path.stem.rpartition("_")[2]))
        examples: dict[str, ExampleEvolution] = {}
        for path in _evenly(files, max_answers):
            try:
                snapshot = durable.read_json(path)
            except (FileNotFoundError, IntegrityError):
                continue
            for said in snapshot["examples"]:
                _add_answer(examples, said)
        return Evolution(examples=list(examples.values()))

    def _entries(self, job_id: str) -> list[CheckpointEntry]:
        return describe(self._paths.run(job_id).folder, self._selection(job_id))

    def _selection(self, job_id: str) -> Selection:
        """Return by what the run chose its best checkpoint; what is set now where it does not say so."""
        stored = section(read_config(self._paths.run(job_id).config_file) or {}, "scoring").get("selection")
        known: dict[object, Selection] = {selection: selection for selection in get_args(Selection)}
        return known.get(stored, self._config.scoring.selection)


def _add_answer(examples: dict[str, ExampleEvolution], said: dict[str, Any]) -> None:
    known = examples.setdefault(
        said["example_id"],
        ExampleEvolution(
            example_id=said["example_id"],
            system_prompt=said.get("system_prompt"),
            prompt=said["input"],
            golden=said["expected_output"],
            answers=[],
        ),
    )
    known.answers.append(
        Answer(step=said["step"], answer=said["model_output"], matches=said["exact_match"], loss=said["loss"])
    )


def _evenly(items: Sequence[T], limit: int, must: Callable[[T], bool] = lambda item: False) -> list[T]:
    """Return at most `limit` items evenly spaced, first and last included, and those that must be there."""
    if len(items) <= limit:
        return list(items)
    rows = {round(index * (len(items) - 1) / max(1, limit - 1)) for index in range(limit)}
    return [item for row, item in enumerate(items) if row in rows or must(item)]
