"""The machine is read where it can be, and what is not there is null without any noise."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import psutil
import pynvml
import pytest

from monitoring.hardware import HardwareMonitor, oom_risk


class FakeDriver:
    """A GPU's library as far as a reading uses it; a question in `mute` is not supported by the card."""

    ANSWERS: ClassVar[dict[str, Any]] = {
        "nvmlDeviceGetName": "Example 24 GB",
        "nvmlDeviceGetUUID": "GPU-1",
        "nvmlDeviceGetTemperature": 61,
        "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=97, memory=40),
        "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=3 * 2**30, total=24 * 2**30),
        "nvmlDeviceGetPowerUsage": 301_500,
        "nvmlDeviceGetEnforcedPowerLimit": 450_000,
    }

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened = self.closed = 0
        self.mute: set[str] = set()
        monkeypatch.setattr(pynvml, "nvmlInit", self._open)
        monkeypatch.setattr(pynvml, "nvmlShutdown", self._close)
        monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda index: index)
        for question in self.ANSWERS:
            monkeypatch.setattr(pynvml, question, self._answering(question))

    def _answering(self, question: str) -> Any:
        def answer(*_: object) -> Any:
            if question in self.mute:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
            return self.ANSWERS[question]

        return answer

    def _open(self) -> None:
        self.opened += 1

    def _close(self) -> None:
        self.closed += 1


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    return FakeDriver(monkeypatch)


def test_memory_disk_and_the_own_process_are_read(tmp_path: Path) -> None:
    monitor = HardwareMonitor(tmp_path)
    reading = monitor.read()
    monitor.close()
    memory = reading.memory
    assert 0 < memory.available_gb <= memory.total_gb
    assert 0 <= memory.ram_percent <= 100
    assert memory.training_process is None
    assert memory.daemon_process is not None and memory.daemon_process.pid == os.getpid()
    assert memory.daemon_process.memory_mb == pytest.approx(
        psutil.Process().memory_info().rss / 2**20, rel=0.2
    )
    assert reading.disk is not None and 0 < reading.disk.free_gb <= reading.disk.total_gb


def test_the_memory_of_the_worker_is_read_while_it_lives(tmp_path: Path) -> None:
    program = "import sys; kept = bytearray(80 * 2**20); print(flush=True); sys.stdin.read()"
    worker = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert worker.stdout is not None
    worker.stdout.readline()
    monitor = HardwareMonitor(tmp_path)
    living = monitor.read(worker.pid).memory.training_process
    worker.communicate("")
    ended = monitor.read(worker.pid).memory.training_process
    monitor.close()
    assert living is not None and living.memory_mb > 80
    assert living.memory_gb == pytest.approx(living.memory_mb / 1024)
    assert ended is None


def test_a_folder_that_is_gone_has_no_disk(tmp_path: Path) -> None:
    monitor = HardwareMonitor(tmp_path / "gone")
    assert monitor.read().disk is None
    monitor.close()


def test_a_machine_without_a_gpu_is_asked_for_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[int] = []

    def refuse() -> None:
        asked.append(1)
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", refuse)
    with caplog.at_level(logging.INFO):
        monitor = HardwareMonitor(tmp_path)
        assert [monitor.read().gpu for _ in range(20)] == [None] * 20
        monitor.close()
    assert len(asked) == 1
    assert len(caplog.records) == 1


def test_a_gpu_number_that_does_not_exist_is_no_gpu(
    tmp_path: Path, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(index: int) -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", refuse)
    assert HardwareMonitor(tmp_path, gpu_index=7).read().gpu is None
    assert (driver.opened, driver.closed) == (1, 1)


def test_a_gpu_is_read_under_the_names_that_pages_know(tmp_path: Path, driver: FakeDriver) -> None:
    monitor = HardwareMonitor(tmp_path)
    for _ in range(10):
        gpu = monitor.read().gpu
    assert gpu is not None and gpu.model_dump() == {
        "gpu_name": "Example 24 GB",
        "temperature": 61,
        "gpu_utilization": 97,
        "memory_utilization": 40,
        "memory_used_mb": 3072.0,
        "memory_total_mb": 24576.0,
        "power_draw_w": 301.5,
        "power_limit_w": 450.0,
    }
    monitor.close()
    monitor.close()
    assert (driver.opened, driver.closed) == (1, 1)
    assert monitor.read().gpu is None


def test_what_a_card_does_not_tell_is_null_and_the_rest_is_there(tmp_path: Path, driver: FakeDriver) -> None:
    driver.mute |= {"nvmlDeviceGetPowerUsage", "nvmlDeviceGetUtilizationRates"}
    gpu = HardwareMonitor(tmp_path).read().gpu
    assert gpu is not None
    assert (gpu.power_draw_w, gpu.gpu_utilization, gpu.memory_utilization) == (None, None, None)
    assert (gpu.temperature, gpu.power_limit_w) == (61, 450.0)


def test_a_gpu_that_falls_off_the_bus_is_said_once_and_left_out(
    tmp_path: Path, driver: FakeDriver, caplog: pytest.LogCaptureFixture
) -> None:
    monitor = HardwareMonitor(tmp_path)
    assert monitor.read().gpu is not None
    driver.mute |= set(driver.ANSWERS)
    assert [monitor.read().gpu for _ in range(5)] == [None] * 5
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert driver.closed == 1


@pytest.mark.parametrize(
    ("percent", "risk"), [(10, "low"), (70, "low"), (71, "medium"), (85, "medium"), (86, "high")]
)
def test_the_risk_of_running_out_of_memory_follows_what_is_used(percent: float, risk: str) -> None:
    assert oom_risk(percent) == risk


def test_a_reading_is_json(tmp_path: Path) -> None:
    monitor = HardwareMonitor(tmp_path)
    text = monitor.read().model_dump_json()
    monitor.close()
    assert '"training_process":null' in text
