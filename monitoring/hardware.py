"""The machine under a run: memory, swap, disk, the processes, and the GPU where there is one.

What cannot be read is None. A machine without a GPU is asked for it once and not again.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import psutil
import pynvml
from pydantic import BaseModel, ConfigDict

logger = logging.getLogger(__name__)

HIGH_RISK_PERCENT, MEDIUM_RISK_PERCENT = 85.0, 70.0
"""Shares of memory in use above which the kernel may soon end a process."""


class _Reading(BaseModel):
    model_config = ConfigDict(frozen=True)


class ProcessReading(_Reading):
    """Memory that a process holds in RAM."""

    pid: int
    memory_mb: float
    memory_gb: float


class MemoryReading(_Reading):
    """RAM, swap, and the processes that train and watch; in GiB and percent."""

    total_gb: float
    used_gb: float
    available_gb: float
    ram_percent: float
    swap_total_gb: float
    swap_used_gb: float
    swap_percent: float
    training_process: ProcessReading | None
    """The worker, where one runs."""
    daemon_process: ProcessReading | None
    oom_risk: Literal["low", "medium", "high"]


class DiskReading(_Reading):
    """The file system of the base folder."""

    total_gb: float
    free_gb: float
    free_bytes: int


class GpuReading(_Reading):
    """One NVIDIA GPU; a field that this card or driver does not tell is None."""

    gpu_name: str | None
    temperature: int | None
    """Degrees Celsius."""
    gpu_utilization: int | None
    """Percent of the last moments in which a kernel ran."""
    memory_utilization: int | None
    """Percent of the last moments in which memory was read or written."""
    memory_used_mb: float | None
    memory_total_mb: float | None
    power_draw_w: float | None
    power_limit_w: float | None


class HardwareReading(_Reading):
    """The whole machine at one moment."""

    memory: MemoryReading
    disk: DiskReading | None
    gpu: GpuReading | None


class HardwareMonitor:
    """Reads the machine; `close` gives the GPU's library back."""

    def __init__(self, base: Path, gpu_index: int = 0) -> None:
        """`base` lies on the file system to watch."""
        self._base = base
        self._gpu = _open_gpu(gpu_index)

    def read(self, worker_pid: int | None = None) -> HardwareReading:
        """Return what can be read now; takes about a millisecond."""
        return HardwareReading(
            memory=_read_memory(worker_pid), disk=_read_disk(self._base), gpu=self._read_gpu()
        )

    def close(self) -> None:
        """Let go of the GPU; later readings are without it."""
        if self._gpu is not None:
            self._gpu = None
            pynvml.nvmlShutdown()

    def _read_gpu(self) -> GpuReading | None:
        gpu = self._gpu
        if gpu is None:
            return None
        if _ask(pynvml.nvmlDeviceGetUUID, gpu) is None:
            logger.warning("The GPU does not answer any more; its readings are left out from now on")
            self.close()
            return None
        rates = _ask(pynvml.nvmlDeviceGetUtilizationRates, gpu)
        memory = _ask(pynvml.nvmlDeviceGetMemoryInfo, gpu)
        power, limit = (
            _ask(question, gpu)
            for question in (pynvml.nvmlDeviceGetPowerUsage, pynvml.nvmlDeviceGetEnforcedPowerLimit)
        )
        return GpuReading(
            gpu_name=_ask(pynvml.nvmlDeviceGetName, gpu),
            temperature=_ask(pynvml.nvmlDeviceGetTemperature, gpu, pynvml.NVML_TEMPERATURE_GPU),
            gpu_utilization=None if rates is None else rates.gpu,
            memory_utilization=None if rates is None else rates.memory,
            memory_used_mb=None if memory is None else memory.used / 2**20,
            memory_total_mb=None if memory is None else memory.total / 2**20,
            power_draw_w=None if power is None else power / 1000,
            power_limit_w=None if limit is None else limit / 1000,
        )


def _open_gpu(index: int) -> Any:
    """Return the handle of a GPU, or None where there is none."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        logger.info("No GPU to watch: %s", error)
        return None
    try:
        return pynvml.nvmlDeviceGetHandleByIndex(index)
    except pynvml.NVMLError as error:
        logger.info("No GPU %d to watch: %s", index, error)
        pynvml.nvmlShutdown()
        return None


def _ask(question: Callable[..., Any], *arguments: Any) -> Any:
    """Return the answer of the GPU's library, or None where this card or driver has none."""
    try:
        return question(*arguments)
    except pynvml.NVMLError:
        return None


def _read_memory(worker_pid: int | None) -> MemoryReading:
    ram, swap = psutil.virtual_memory(), psutil.swap_memory()
    return MemoryReading(
        total_gb=ram.total / 2**30,
        used_gb=ram.used / 2**30,
        available_gb=ram.available / 2**30,
        ram_percent=ram.percent,
        swap_total_gb=swap.total / 2**30,
        swap_used_gb=swap.used / 2**30,
        swap_percent=swap.percent,
        training_process=None if worker_pid is None else _read_process(worker_pid),
        daemon_process=_read_process(os.getpid()),
        oom_risk=oom_risk(ram.percent),
    )


def oom_risk(ram_percent: float) -> Literal["low", "medium", "high"]:
    """Say how near the machine is to ending a process for want of memory."""
    if ram_percent > HIGH_RISK_PERCENT:
        return "high"
    return "medium" if ram_percent > MEDIUM_RISK_PERCENT else "low"


def _read_process(pid: int) -> ProcessReading | None:
    try:
        rss = psutil.Process(pid).memory_info().rss
    except psutil.Error:
        return None  # it has just ended
    return ProcessReading(pid=pid, memory_mb=rss / 2**20, memory_gb=rss / 2**30)


def _read_disk(base: Path) -> DiskReading | None:
    try:
        usage = shutil.disk_usage(base)
    except OSError:
        return None
    return DiskReading(total_gb=usage.total / 2**30, free_gb=usage.free / 2**30, free_bytes=usage.free)
