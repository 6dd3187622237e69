"""The curves of a run: what its events say, read once, cut to a size that a page can take."""

from __future__ import annotations

import math
from pathlib import Path

import orjson
import pytest

from config import Paths
from monitoring.events import EvaluatedEvent, FixedEvalEvent, StepEvent, encode_event
from monitoring.streaming_metrics import StreamingMetrics
from serving.run_metrics import KEPT_RUNS, CurvesOfRuns, RunCurves
from tests.training.ledger.run_folders import Folder, plan, step, steps

PAGE_BYTES = 300_000


def evaluated(number: int, eval_loss: float) -> EvaluatedEvent:
    return EvaluatedEvent(step=number, eval_loss=eval_loss, records=4, tokens=9, train_loss=0.5, score=0.25)


def fixed_eval(number: int, em: float | None, ce: float | None) -> FixedEvalEvent:
    return FixedEvalEvent(step=number, em=em, ce=ce, ece=None, tokens=9, matches=())


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def curves(folder: Folder) -> RunCurves:
    (job_id,) = (job.job_id for job in folder.store.all())
    return RunCurves(folder.paths.run(job_id).events)


def test_columns_say_what_the_events_said(folder: Folder) -> None:
    folder.job(1, plan(), *steps(range(1, 4)), evaluated(2, 1.5), fixed_eval(2, 0.5, 1.0))
    points, columns, evaluations = curves(folder).columns(1000)
    assert points == 3
    assert columns.step == [1, 2, 3]
    assert columns.loss == [1.0, 0.5, 0.3333333]
    assert columns.tokens_per_sec == [400.0] * 3
    assert columns.grad_norm == [0.5] * 3
    assert (evaluations.step, evaluations.eval_loss, evaluations.score) == ([2], [1.5], [0.25])
    assert (evaluations.fixed_eval_em, evaluations.fixed_eval_ce) == ([0.5], [1.0])


def test_the_smoothed_loss_is_the_one_of_the_status(folder: Folder) -> None:
    folder.job(1, *steps(range(1, 30)))
    streaming = StreamingMetrics()
    for number in range(1, 30):
        streaming.observe(1 / number)
    assert curves(folder).columns(1000)[1].ema_loss[-1] == pytest.approx(streaming.snapshot().streaming_ce)


def test_what_is_missing_is_null(folder: Folder) -> None:
    lost = step(1).model_copy(update={"loss": math.nan, "grad_norm": None, "seconds": 0.0})
    folder.job(1, lost, fixed_eval(3, 1.0, None))
    _, columns, evaluations = curves(folder).columns(1000)
    assert (columns.loss, columns.grad_norm, columns.tokens_per_sec) == ([None], [None], [None])
    assert (evaluations.eval_loss, evaluations.fixed_eval_em, evaluations.fixed_eval_ce) == (
        [None],
        [1.0],
        [None],
    )


def test_a_run_that_goes_back_forgets_what_came_after(folder: Folder) -> None:
    job = folder.job(1, plan(), *steps(range(1, 9)), evaluated(4, 1.0), evaluated(8, 0.5))
    reader = curves(folder)
    reader.columns(1000)
    folder.say(job, plan(start_step=4), step(5, 7.0))
    _, columns, evaluations = reader.columns(1000)
    assert columns.step == [1, 2, 3, 4, 5]
    assert columns.loss[-1] == 7.0
    assert evaluations.step == [4]


def test_a_growing_file_is_read_from_where_the_last_reading_ended(folder: Folder) -> None:
    job = folder.job(1, *steps(range(1, 4)))
    events, reader = folder.paths.run(job.job_id).events, curves(folder)
    reader.columns(1000)
    known = events.stat().st_size
    with open(events, "r+b") as file:
        file.write(b"x" * known)  # what was read before is not looked at again
        file.seek(0, 2)
        file.write(encode_event(step(4))[:-9])
    assert reader.columns(1000)[0] == 3
    with open(events, "ab") as file:
        file.write(encode_event(step(4))[-9:])
    assert reader.columns(1000)[0] == 4


def test_another_file_of_that_name_is_read_from_its_beginning(folder: Folder) -> None:
    job = folder.job(1, *steps(range(1, 9)))
    events, reader = folder.paths.run(job.job_id).events, curves(folder)
    reader.columns(1000)
    other = events.with_name("other")
    other.write_bytes(encode_event(step(1)))
    other.replace(events)
    assert reader.columns(1000)[1].step == [1]


@pytest.mark.parametrize("line", [b"not json", b'{"event":"step"}', b'[{"event":"step"}]', b'"event":"step"'])
def test_a_damaged_line_is_a_gap(folder: Folder, line: bytes) -> None:
    job = folder.job(1, step(1))
    with open(folder.paths.run(job.job_id).events, "ab") as file:
        file.write(line + b"\n" + encode_event(step(2)))
    assert curves(folder).columns(1000)[1].step == [1, 2]


def test_the_curves_of_100_000_steps_fit_a_page_and_keep_every_extreme(tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    template = step(1).model_dump(mode="json")

    def line(number: int) -> bytes:
        loss = 9.0 if number == 71_717 else -1.0 if number == 31_313 else 2 + math.sin(number)
        seconds = 100.0 if number == 55_555 else 0.25
        return orjson.dumps({**template, "step": number, "loss": loss, "seconds": seconds}) + b"\n"

    events.write_bytes(b"".join(map(line, range(1, 100_001))))
    points, columns, evaluations = RunCurves(events).columns(1000)
    assert points == 100_000
    assert len(columns.step) <= 1000
    assert {1, 31_313, 55_555, 71_717, 100_000} <= set(columns.step)
    sizes = (len(columns.model_dump_json()), len(evaluations.model_dump_json()))
    assert sum(sizes) < PAGE_BYTES / 2


def test_only_the_runs_asked_for_last_stay_in_memory(tmp_path: Path) -> None:
    runs = CurvesOfRuns(Paths(tmp_path))
    first = runs.of("000001-00000000")
    assert runs.of("000001-00000000") is first
    for number in range(KEPT_RUNS):
        runs.of(f"00001{number}-00000000")
    assert runs.of("000001-00000000") is not first


def test_steps_that_come_again_without_a_plan_replace_the_old_ones(folder: Folder) -> None:
    again: StepEvent = step(2, 5.0)
    folder.job(1, *steps(range(1, 5)), again)
    assert curves(folder).columns(1000)[1].loss == [1.0, 5.0]
