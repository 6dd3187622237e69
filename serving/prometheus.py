"""The numbers for Prometheus, read from the same files as the page; what is not known is left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import get_args

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from config import Paths
from monitoring.throughput_monitor import WINDOW_STEPS
from monitoring.training_status import Reading, State, TrainingStatus, read_status
from serving.job_views import JobViews
from serving.version_views import VersionIndex

CONTENT_TYPE = CONTENT_TYPE_LATEST
GIB, MIB = 2**30, 2**20
_SPEED = f"Tokens trained a second, over the last {WINDOW_STEPS} steps."


class MetricsView:
    """One registry of our own: nothing that other libraries register is shown."""

    def __init__(self, paths: Paths, jobs: JobViews, versions: VersionIndex) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Files(paths, jobs, versions))

    def render(self) -> bytes:
        """Return the text that Prometheus reads."""
        return generate_latest(self._registry)


class _Files(Collector):
    """Reads the files at each scrape."""

    def __init__(self, paths: Paths, jobs: JobViews, versions: VersionIndex) -> None:
        self._paths = paths
        self._jobs = jobs
        self._versions = versions

    def collect(self) -> Iterator[Metric]:
        reading = read_status(self._paths)
        if reading is not None:
            yield from _life(reading)
            yield from _run(reading.status)
            yield from _machine(reading.status)
        yield from self._totals()

    def describe(self) -> Iterator[Metric]:
        """Nothing is known before the first scrape."""
        return iter(())

    def _totals(self) -> Iterator[Metric]:
        totals = self._jobs.totals()
        yield _by("trainbox_jobs", "Jobs whose run folder is kept, by state.", "state", totals.states)
        yield _by(
            "trainbox_records",
            "Records of the files whose run folder is kept, by what became of them.",
            "verdict",
            totals.records,
        )
        verdicts = Counter(version.decision for version in self._versions.summaries())
        counts = {"promote": verdicts["promote"], "hold": verdicts["hold"]}
        yield _by("trainbox_versions", "Versions that are kept, by their verdict.", "verdict", counts)


def _life(reading: Reading) -> Iterator[Metric]:
    status = reading.status
    is_up = reading.is_running and not reading.is_stale
    yield _one("trainbox_up", "Whether the daemon lives and says so.", float(is_up))
    states = {name: float(name == status.state) for name in get_args(State)}
    yield _by("trainbox_state", "What the daemon is doing: 1 for that state.", "state", states)
    yield from _known(
        "trainbox_heartbeat_timestamp_seconds", "When it last said so.", status.heartbeat_at.timestamp()
    )
    queue = {"high": status.queue.high, "normal": status.queue.normal, "low": status.queue.low}
    yield _by("trainbox_queue_jobs", "Jobs that have no outcome yet, by priority.", "priority", queue)
    alerts = {grade: status.alert_summary.get(grade, 0) for grade in ("critical", "warning", "info")}
    yield _by("trainbox_alerts", "Alerts that are active, by severity.", "severity", alerts)


def _run(status: TrainingStatus) -> Iterator[Metric]:
    """Yield the numbers of the run that is on; of the last one while none is."""
    for name, text, value in (
        ("trainbox_step", "Optimizer steps done in this file.", status.batch_step),
        ("trainbox_total_steps", "Optimizer steps planned for this file.", status.batch_total_steps),
        ("trainbox_lineage_step", "Optimizer steps over all files of this lineage.", status.current_step),
        ("trainbox_epoch", "Epochs done in this file.", status.epoch),
        ("trainbox_loss", "Loss of the last step, in nats per trained token.", status.loss),
        ("trainbox_loss_average", "Moving average of the loss.", status.streaming_ce),
        ("trainbox_validation_loss", "Held-out loss, in nats per token.", status.validation_loss),
        ("trainbox_learning_rate", "Learning rate of the last step.", status.learning_rate),
        ("trainbox_gradient_norm", "Gradient norm of the last step, before clipping.", status.grad_norm),
        ("trainbox_tokens_per_second", _SPEED, status.tokens_per_sec),
        ("trainbox_eta_seconds", "Time left as of the last step of the run.", status.eta_seconds),
        ("trainbox_worker_resident_bytes", "Memory of the worker that runs.", status.worker_rss_bytes),
    ):
        yield from _known(name, text, value)
    accuracy = None if status.accuracy_percent is None else status.accuracy_percent / 100
    yield from _known("trainbox_accuracy_ratio", "Share of exact answers of this run.", accuracy)


def _machine(status: TrainingStatus) -> Iterator[Metric]:
    memory, disk, gpu = status.memory or {}, status.disk or {}, status.gpu or {}
    daemon = memory.get("daemon_process") or {}
    for name, text, value, unit in (
        ("trainbox_memory_used_bytes", "RAM in use.", memory.get("used_gb"), GIB),
        ("trainbox_memory_total_bytes", "RAM there is.", memory.get("total_gb"), GIB),
        ("trainbox_swap_used_bytes", "Swap in use.", memory.get("swap_used_gb"), GIB),
        ("trainbox_daemon_resident_bytes", "Memory of the daemon.", daemon.get("memory_mb"), MIB),
        ("trainbox_disk_free_bytes", "Free on the base folder's disk.", disk.get("free_bytes"), 1),
        ("trainbox_disk_total_bytes", "Size of the base folder's disk.", disk.get("total_gb"), GIB),
        ("trainbox_gpu_memory_used_bytes", "GPU memory in use.", gpu.get("memory_used_mb"), MIB),
        ("trainbox_gpu_memory_total_bytes", "GPU memory there is.", gpu.get("memory_total_mb"), MIB),
        ("trainbox_gpu_utilization_ratio", "Share of time the GPU worked.", gpu.get("gpu_utilization"), 0.01),
        ("trainbox_gpu_temperature_celsius", "Temperature of the GPU.", gpu.get("temperature"), 1),
        ("trainbox_gpu_power_watts", "Power the GPU draws.", gpu.get("power_draw_w"), 1),
    ):
        yield from _known(name, text, None if value is None else value * unit)


def _known(name: str, text: str, value: float | None) -> Iterator[Metric]:
    """Yield a gauge, or nothing where the value is not known."""
    if value is not None:
        yield _one(name, text, value)


def _one(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _by(name: str, text: str, label: str, values: dict[str, int] | dict[str, float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family
