"""Can trainbox train here? One finding for each thing it needs, with the remedy where it lacks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
import pynvml

from config import Paths, load_config
from errors import ConfigError

MIN_FREE_BYTES = 10 * 2**30
MIN_MEMORY_BYTES = 4 * 2**30
_TORCH_PROBE = "import torch; print(torch.__version__, torch.cuda.is_available(), sep='\\n')"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; `remedy` is empty when nothing need be done."""

    name: str
    level: Literal["ok", "warning", "problem"]
    found: str
    remedy: str = ""


def examine(base: Path) -> Iterator[Finding]:
    """Look at everything trainbox needs to train in the base folder `base`; changes nothing."""
    yield _python()
    yield _torch()
    yield _gpu()
    yield _memory()
    yield _disk(base)
    yield _permissions(base)
    yield _configuration(base)
    yield _model(base)


def _python() -> Finding:
    if sys.prefix == sys.base_prefix:
        return Finding("Python", "warning", f"{sys.version.split()[0]} outside .venv", "run: make install")
    return Finding("Python", "ok", sys.version.split()[0])


def _torch() -> Finding:
    probe = subprocess.run([sys.executable, "-c", _TORCH_PROBE], capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        reason = probe.stderr.strip().splitlines()[-1:] or ["no message"]
        return Finding("torch", "problem", f"cannot be imported: {reason[0]}", "run: make install")
    version, cuda = probe.stdout.split()
    if cuda != "True" and _gpu().level == "ok":
        remedy = "install a CUDA build of torch; there is a GPU that this one cannot use"
        return Finding("torch", "warning", f"{version} without CUDA", remedy)
    return Finding("torch", "ok", f"{version}, {'CUDA' if cuda == 'True' else 'CPU'}")


def _gpu() -> Finding:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        advice = "fine for models up to about 0.5 B; larger ones need an NVIDIA GPU and its driver"
        return Finding("GPU", "warning", "none, training runs on the CPU", advice)
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        name = pynvml.nvmlDeviceGetName(handle)
    finally:
        pynvml.nvmlShutdown()
    return Finding("GPU", "ok", f"{name}, {memory.free / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free")


def _memory() -> Finding:
    available = psutil.virtual_memory().available
    found = f"{available / 2**30:.1f} GiB available"
    if available < MIN_MEMORY_BYTES:
        return Finding(
            "memory", "warning", found, "close other programs; 4 GiB is what the embedded model likes"
        )
    return Finding("memory", "ok", found)


def _disk(base: Path) -> Finding:
    free = shutil.disk_usage(_nearest_existing(base)).free
    found = f"{free / 2**30:.1f} GiB free"
    if free < MIN_FREE_BYTES:
        return Finding("disk", "warning", found, "make room; checkpoints and versions need some GiB")
    return Finding("disk", "ok", found)


def _permissions(base: Path) -> Finding:
    paths = Paths(base)
    folders = [paths.inbox, paths.status_file.parent, paths.models, paths.log_file.parent]
    for folder in folders:
        place = _nearest_existing(folder)
        if not os.access(place, os.R_OK | os.W_OK | os.X_OK):
            return Finding("permissions", "problem", f"cannot write to {place}", f"run: chmod u+rwx {place}")
    devices = {_nearest_existing(folder).stat().st_dev for folder in (paths.inbox, paths.models)}
    if len(devices) > 1:
        remedy = "keep inbox/ and models/ on one file system, so that files move whole"
        return Finding("permissions", "problem", "inbox/ and models/ lie on two file systems", remedy)
    return Finding("permissions", "ok", f"{base.resolve()} can be written")


def _configuration(base: Path) -> Finding:
    try:
        load_config(base)
    except ConfigError as error:
        return Finding("config", "problem", str(error), "mend config.yaml or the environment")
    path = Paths(base).config_file
    return Finding("config", "ok", str(path) if path.exists() else "no config.yaml, all defaults")


def _model(base: Path) -> Finding:
    from training.base_model import locate_base

    try:
        folder = locate_base(Paths(base), load_config(base).model)
    except ConfigError as error:
        return Finding("model", "problem", str(error), "run: trainbox prepare")
    return Finding("model", "ok", str(folder))


def _nearest_existing(path: Path) -> Path:
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.exists())
