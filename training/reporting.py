"""Who else is told a run's numbers: TensorBoard, Trackio, W&B or MLflow, by the callbacks of transformers.

What a person set in the environment for one of them stands, but for what names the run.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable

from config import Paths, RunPaths
from errors import ConfigError

PROJECT = "trainbox"


def require_reporters(names: Iterable[str]) -> None:
    """Raise ConfigError when the library of one of `names` is not installed."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
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
