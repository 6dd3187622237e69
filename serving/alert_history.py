"""The alerts that began or ended: in the newest runs, read from their events, and while no job ran."""

from __future__ import annotations

import threading
from heapq import merge
from pathlib import Path

from config import Paths
from monitoring.events import AlertEvent, decode_event
from serving.documents import PastAlert
from serving.run_metrics import GrowingFile
from training.ledger.sources import run_ids

LOOKED_AT_RUNS = 20
SHOWN_ALERTS = 200
_MARK = b'"event":"alert"'


class AlertHistory:
    """Follows the files in which alerts are kept; of each line only that it is no alert is looked at."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._lock = threading.Lock()
        self._runs: dict[str, _Alerts] = {}
        self._outside = _Alerts(paths.alerts, None)

    def newest(self) -> list[PastAlert]:
        """Return what alarmed in the newest runs and outside of runs, newest first."""
        with self._lock:
            wanted = run_ids(self._paths)[-LOOKED_AT_RUNS:]
            self._runs = {
                job_id: self._runs.get(job_id) or _Alerts(self._paths.run(job_id).events, job_id)
                for job_id in wanted
            }
            of_runs = [alert for run in self._runs.values() for alert in run.read()]
            # Runs are in order by their number; only what lies between them has to go by the clock.
            found = list(merge(of_runs, self._outside.read(), key=lambda alert: alert.at))
        return found[::-1][:SHOWN_ALERTS]


class _Alerts:
    """The alerts in one file, in the order they came."""

    def __init__(self, path: Path, job_id: str | None) -> None:
        self._job_id = job_id
        self._file = GrowingFile(path)
        self._alerts: list[PastAlert] = []

    def read(self) -> list[PastAlert]:
        for line in self._file.new_lines(self._alerts.clear):
            if _MARK in line:
                self._take(line)
        return self._alerts

    def _take(self, line: bytes) -> None:
        try:
            event = decode_event(line)
        except ValueError:
            return  # a damaged line
        if isinstance(event, AlertEvent):
            self._alerts.append(PastAlert(job_id=self._job_id, **event.model_dump(exclude={"event"})))
        del self._alerts[:-SHOWN_ALERTS]
