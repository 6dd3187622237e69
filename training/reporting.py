"""Who else is told a run's numbers: TensorBoard, Trackio, W&B or MLflow, by the callbacks of transformers.

What a person set in the environment for one of them stands, but for what names the run.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
from collections.abc import Iterable, Iterator
from typing import Any

from config import Paths, RunPaths
from errors import ConfigError

PROJECT = "trainbox"
WANDB_FINISH_SECONDS = 60
"""Longest wait at the end of a run for an upload; what is left lies on the disk for `wandb sync`."""


def require_reporters(names: Iterable[str]) -> None:
    """Raise ConfigError when the library of one of `names` is not installed."""
    missing = [name for name in names if not _is_installed(name)]
    if missing:
        raise ConfigError(
            f"train.report_to: found no library {', '.join(missing)}, expected it beside trainbox; "
            f"run: .venv/bin/pip install {' '.join(missing)}, or take it off the list"
        )


def introduce_run(paths: Paths, run: RunPaths, names: Iterable[str], *, is_offline: bool) -> None:
    """Tell the libraries by their environment variables what this run is called and where its numbers go.

    TensorBoard and W&B write into the run folder; Trackio and MLflow keep one store of all runs in ``logs/``.
    Nothing is set for a library that is not among `names`.
    """
    variables = {
        "tensorboard": {"TENSORBOARD_LOGGING_DIR": str(run.tensorboard)},
        "wandb": {"WANDB_RUN_ID": run.folder.name, "WANDB_RESUME": "allow"},
    }
    defaults = {
        "wandb": {
            "WANDB_DIR": str(run.folder),
            "WANDB_PROJECT": PROJECT,
            "WANDB_MODE": "offline" if is_offline else "online",
            "WANDB_FINISH_TIMEOUT": str(WANDB_FINISH_SECONDS),
        },
        "trackio": {"TRACKIO_DIR": str(paths.trackio)},
        "mlflow": {
            "MLFLOW_TRACKING_URI": f"sqlite:///{paths.mlflow}",
            "MLFLOW_EXPERIMENT_NAME": PROJECT,
        },
    }
    for name in names:
        os.environ.update(variables.get(name, {}))
        for variable, value in defaults.get(name, {}).items():
            os.environ.setdefault(variable, value)


@contextlib.contextmanager
def reporting(names: Iterable[str]) -> Iterator[None]:
    """Have the libraries write at the end what they were told, however that end came.

    They would do so when the interpreter ends, or at the end of a training without an error. A worker ends
    without either, and takes the processes that they started along.
    """
    try:
        yield
    finally:
        for name in set(names) & _FINISH.keys():
            _FINISH[name](importlib.import_module(name))


def _finish_wandb(wandb: Any) -> None:
    if wandb.run is not None:
        wandb.finish()


def _finish_trackio(trackio: Any) -> None:
    if trackio.context_vars.current_run.get() is not None:
        trackio.finish()


def _finish_mlflow(mlflow: Any) -> None:
    mlflow.flush_async_logging()
    if mlflow.active_run() is not None:
        mlflow.end_run("FAILED")


_FINISH = {"wandb": _finish_wandb, "trackio": _finish_trackio, "mlflow": _finish_mlflow}


def _is_installed(name: str) -> bool:
    """Tell whether there is a library of that name; W&B's own folders look like an empty one."""
    found = importlib.util.find_spec(name)
    return found is not None and found.origin is not None
