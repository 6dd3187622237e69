"""How fast earlier runs were."""

from __future__ import annotations

from pathlib import Path

import pytest

from config import ModelConfig, Paths, dump_config, load_config
from training.throughput import last_throughput


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    paths = Paths(tmp_path)
    paths.create()
    return paths


def log(paths: Paths, job_id: str, *lines: str, base: str = "embedded") -> None:
    run = paths.run(job_id)
    run.folder.mkdir()
    run.config_file.write_text(dump_config(load_config(paths.base, [f"model.base={base}"])))
    run.trainer_log.write_text("".join(f"{line}\n" for line in lines))


def test_the_newest_run_with_the_same_model_tells(paths: Paths) -> None:
    log(paths, "000001-aaaaaaaa", '{"throughput": 100.0}')
    log(paths, "000002-aaaaaaaa", '{"loss": 1.0}', '{"throughput": 250.0}', '{"eval_loss": 1.0}')
    log(paths, "000003-aaaaaaaa", '{"throughput": 9.0}', base="/another/model")
    assert last_throughput(paths, ModelConfig()) == 250.0


def test_runs_that_did_not_get_far_are_passed_over(paths: Paths) -> None:
    assert last_throughput(paths, ModelConfig()) is None
    log(paths, "000001-aaaaaaaa", '{"throughput": 100.0}')
    log(paths, "000002-aaaaaaaa", '{"loss": 1.0}')
    (paths.runs / "000003-aaaaaaaa").mkdir()
    assert last_throughput(paths, ModelConfig()) == 100.0


def test_a_long_log_is_read_from_its_end(paths: Paths) -> None:
    log(paths, "000001-aaaaaaaa", *(f'{{"throughput": {number}.0}}' for number in range(5000)))
    assert last_throughput(paths, ModelConfig()) == 4999.0
