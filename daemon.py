"""The long-running process: it takes dropped files and has them trained, one after the other.

startup: finish what a crash interrupted. loop: obey the control files, claim settled files, run the next
job. shutdown: let everything go. All that matters lies in folders and is written before it is acted on, so
the daemon may be killed at any instant. It never imports torch: a job runs in a process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

import durable
from config import Config, Paths, load_config
from errors import TrainboxError, UsageError
from intake.watch import Bell, Watch
from monitoring.alert_log import AlertLog
from monitoring.daemon_lock import only_daemon
from monitoring.daemon_log import start_logging
from monitoring.events import (
    CheckpointEvent,
    Event,
    ExampleEvent,
    NoteEvent,
    OutcomeEvent,
    PlanEvent,
    encode_event,
    now,
)
from monitoring.flagged_examples import FlaggedExamples
from monitoring.hardware import HardwareMonitor
from monitoring.observation import Thresholds
from monitoring.systemd import Notifier
from monitoring.training_status import QueueStatus, StatusWriter
from serving.access import AccessRules, access_rules
from serving.monitor_thread import MonitorThread
from training.control import Control
from training.disk_space import Reserve, forecast
from training.filing import file_away
from training.housekeeping import Housekeeper
from training.job_queue import JobQueue, advanced, begun, changed, concluded, ended, given_up
from training.jobs import Job, JobStore
from training.ledger.keeper import LedgerKeeper
from training.reception import SHOWN_NAMES, Reception
from training.regressions import Regressions
from training.reporting import require_reporters
from training.retry import Retry
from training.run_logs import drop_old_logs
from training.runner import WORKER_COMMAND, Runner, Wish
from training.versions import VersionStore

logger = logging.getLogger(__name__)

RETRY_SECONDS = 5.0
"""First wait when the environment is not ready."""
DISK_LOOK_SECONDS = 5.0
"""Time between two looks at the free space while a job runs."""
EXTEND_STOP_SECONDS = 30
"""While the worker saves, systemd is asked again and again for so much more time; it must exit in it, too."""


class Daemon:
    """One daemon at work on one base folder, whose lock the caller holds."""

    def __init__(
        self,
        paths: Paths,
        config: Config,
        *,
        until_idle: bool = False,
        worker_command: Sequence[str] = WORKER_COMMAND,
        notifier: Notifier | None = None,
        access: AccessRules | None = None,
        retry_seconds: float = RETRY_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`access` says who may look at the monitor; without it none is served."""
        self._paths = paths
        self._config = config
        self._until_idle = until_idle
        self._notifier = notifier or Notifier()
        self._clock = clock

        self._store = JobStore(paths)
        self._versions = VersionStore(paths)
        self._regressions = Regressions(paths, self._versions)
        self._control = Control(paths)
        self._runner = Runner(paths, config.worker, worker_command, clock)
        self._status = StatusWriter(
            paths.status_file,
            config.monitoring.status_seconds,
            clock,
            hardware=HardwareMonitor(paths.base),
            limits=Thresholds(disk_free_bytes=config.disk.min_free_bytes),
            state="starting",
            max_output_tokens=config.evaluation.max_new_tokens,
            context_window=config.data.max_length,
        )
        self._flagged = FlaggedExamples(paths.flagged_examples)
        self._alert_log = AlertLog(paths.alerts)
        self._bell = Bell()
        self._watch = Watch(paths, self._bell)
        self._housekeeper = Housekeeper(paths, config, on_rest=self._bell.ring)
        self._monitor = (
            None if access is None else MonitorThread(paths, config, access, retry_seconds=retry_seconds)
        )

        self._ledger = LedgerKeeper(paths, config.ledger)
        self._queue = JobQueue(self._store, self._ledger.note)
        self._reception = Reception(paths, self._store, config, self._queue, clock, self._tell_systemd)
        self._running: Job | None = None
        self._runs = 0
        self._retry = Retry(retry_seconds, clock)
        self._reserve = Reserve(
            paths.runs, config.disk.min_free_bytes, min(DISK_LOOK_SECONDS, retry_seconds), clock
        )
        self._said = ""
        self._signals = 0
        self._is_stop_asked = False
        self._is_skip_asked = False

    def run(self) -> None:
        """Work until told to stop, or until there is nothing left to do when that is what was asked."""
        self.startup()
        try:
            self.loop()
        finally:
            self.shutdown()

    def startup(self) -> None:
        """Finish what a crash interrupted, then say that we are there."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        self._status.write()
        self._control.discard_stop()
        self._reception.recover()
        self._versions.remove_unfinished()
        self._versions.roll_forward()
        for job in self._queue.waiting():
            if job.state == "running":
                logger.info("Found job %s interrupted at step %s; it goes on", job.job_id, job.step or 0)
                self._queue.save(changed(job, state="queued"))
        self._ledger.start()
        self._watch.start()
        self._housekeeper.start()
        if self._monitor is not None:
            self._monitor.start()
        self._notifier.send("READY=1")
        logger.info("Watching %s (pid %d)", self._paths.inbox, os.getpid())

    def loop(self) -> None:
        """Obey control, claim settled files, run the next job; rest when there is nothing to do."""
        while True:
            self._beat()
            if self._is_ending():
                return
            job = self._next_job()
            if job is not None:
                self._run_job(job)
            elif self._until_idle and self._is_idle():
                logger.info("Nothing left to do")
                return
            else:
                self._rest()

    def shutdown(self) -> None:
        """Let go of the worker, the watch and the status; the queue lies on disk."""
        self._hear_signal()  # one that came between the last look and the end
        self._notifier.send("STOPPING=1")
        self._watch.stop()
        self._housekeeper.stop()
        self._runner.release()
        self._flagged.save()
        self._ledger.stop()
        if self._monitor is not None:
            self._monitor.stop()
        self._status.acknowledge()
        self._tell_rest()
        self._tell_queue()  # what the housekeeper met last is not told yet
        self._status.update(state="stopped", ledger_trouble=self._ledger.trouble)
        logger.info("Stopped")

    # What a person wants

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1
        self._bell.ring()

    def _is_ending(self) -> bool:
        return self._is_stop_asked or self._signals > 0

    def _wish(self) -> Wish | None:
        """Return what is wanted of the running worker now."""
        if self._signals > 1:
            return "kill"
        if self._is_skip_asked:
            return "skip"
        if self._is_ending():
            return "stop"
        return "pause" if self._control.pause or self._reserve.shortage else None

    def _obey(self) -> None:
        was_paused = self._control.pause is not None
        for request in self._control.look():
            logger.info("Received .%s (reason: %s)", request.command, request.reason or "none given")
            self._status.receive(request.command, request.reason, request.received_at)
            if request.command == "pause" and self._running is None:
                self._runner.release()
                self._tell_rest()
                self._status.acknowledge()
            elif request.command == "resume":
                self._status.acknowledge(message=None if was_paused else "nothing to resume")
            elif request.command == "skip":
                self._skip()
            elif request.command == "stop":
                self._is_stop_asked = True
        self._hear_signal()

    def _hear_signal(self) -> None:
        if self._signals and not self._is_stop_asked:
            self._is_stop_asked = True
            logger.info("Received a signal to stop")
            self._status.receive("stop", "signal", now())

    def _skip(self) -> None:
        """Have the running worker give up its file; without one, give up the job that was interrupted."""
        interrupted = self._queue.interrupted()
        if self._running is not None:
            self._is_skip_asked = True
        elif interrupted is not None:
            skipped = OutcomeEvent(outcome="skipped", message="skipped while it was interrupted")
            self._queue.save(ended(interrupted, skipped))
            self._status.acknowledge(step=interrupted.step)
        else:
            self._status.acknowledge(message="nothing to skip")

    # The beat, several times a second while a job runs

    def _beat(self) -> Wish | None:
        self._obey()
        if self._reception.is_due():
            if self._reception.receive():
                self._status.update(message=None)
            self._tell_queue()
            if (lost := self._regressions.look()) is not None:
                self._status.look_at_suites(lost)
        if self._running is not None:
            self._reserve.watch()
        self._flagged.save()
        self._status.worker_pid = self._runner.worker_pid
        self._status.update(ledger_trouble=self._ledger.trouble)
        if self._monitor is not None:
            self._status.look_at_monitor(self._monitor.trouble)
        self._tell_alerts()
        self._tell_systemd()
        return self._wish()

    def _rest(self) -> None:
        """Sleep until something may have changed, with a worker ready if a job is to be expected."""
        retry_at = self._retry.due_at
        self._tell_rest()
        is_job_expected = bool(self._queue) or self._reception.is_settling
        self._runner.keep_ready(is_job_expected and retry_at is None and self._control.pause is None)
        ping_at = self._clock() + self._notifier.ping_seconds
        wake_at = min([self._reception.look_at, ping_at] + ([] if retry_at is None else [retry_at]))
        if self._bell.wait(wake_at - self._clock()):
            self._reception.hurry()

    # One job

    def _next_job(self) -> Job | None:
        if self._retry.is_waiting:
            return None
        self._retry.begin()
        head = next(iter(self._queue.ordered()), None)
        is_held = head is not None and head.outcome is None and self._control.pause is not None
        return None if is_held else head

    def _run_job(self, job: Job) -> None:
        """The job boundary: whatever goes wrong inside concerns this job, and the daemon goes on."""
        try:
            if job.outcome is None:
                job = self._train(job)
            if job.outcome is not None:
                self._file(job)
        except (OSError, TrainboxError) as error:
            self._wait(self._queue.latest(job), str(error))
        except Exception as error:
            logger.exception("Job %s met an error nobody foresaw", job.job_id)
            self._wait(self._after_surprise(self._queue.latest(job), error), repr(error))
        finally:
            self._running = None
            self._is_skip_asked = False

    @staticmethod
    def _after_surprise(job: Job, error: Exception) -> Job:
        """Return a job as failed, unless it had ended before: then only its filing is tried again."""
        failure = OutcomeEvent(outcome="failed", kind="daemon", message=repr(error))
        return job if job.outcome is not None else ended(job, failure)

    def _train(self, job: Job) -> Job:
        """Run a worker on `job`; return it with its outcome, or without one when it is queued again."""
        version = self._version_of(job)
        if version is not None:
            return self._queue.save(ended(job, OutcomeEvent(outcome="completed", version=version)))
        if job.attempts > self._config.worker.max_restarts:
            return self._queue.save(given_up(job))
        if not self._has_room_for(job):
            return job
        job = self._queue.save(begun(job))
        self._runs += 1
        drop_old_logs(self._paths, self._config.retention.run_logs, job.number)
        self._status.begin_run(
            state="starting",
            status="training",
            job_id=job.job_id,
            current_file=job.name,
            batch_number=self._runs,
        )
        self._tell_alerts()  # those of the run before end here, and are none of this one's
        self._running = job
        outcome = self._runner.run(job.job_id, self._on_event, self._beat)
        return self._conclude(self._running, outcome)

    def _has_room_for(self, job: Job) -> bool:
        """Tell whether the run of `job` fits on the disk; if not, look again soon: it goes on by itself."""
        if self._reserve.has_room_for(forecast(self._paths, job)):
            return True
        self._retry.look_again()
        self._status.update(state="waiting", status="idle", message=self._reserve.shortage)
        return False

    def _on_event(self, line: bytes, event: Event) -> None:
        """Keep what the worker said, and show it."""
        job = self._running
        assert job is not None, "events come only while a job runs"
        self._keep_event(job, line)
        self._ledger.note(job)
        if isinstance(event, PlanEvent):
            self._status.continue_from(self._steps_until(event.parent))
        self._status.observe(event)
        self._tell_alerts()
        if isinstance(event, ExampleEvent):
            self._flagged.observe(event, job.job_id, job.name)
        if isinstance(event, NoteEvent):
            logger.info("Job %s: %s", job.job_id, event.message)
        if isinstance(event, CheckpointEvent) and event.step > (job.step or 0):
            self._running = self._queue.save(advanced(job, event.step))

    def _keep_event(self, job: Job, line: bytes) -> None:
        try:
            durable.append_line(self._store.run(job).events, line)
        except OSError as error:
            logger.warning("Lost an event of job %s: %s", job.job_id, error)

    def _conclude(self, job: Job, outcome: OutcomeEvent) -> Job:
        """Record what the end of the worker makes of its job, and answer the command that ended it."""
        logger.info("Job %s: %s %s", job.job_id, outcome.outcome, outcome.message or "")
        max_restarts = self._config.worker.max_restarts
        concluded_job = self._queue.save(concluded(job, outcome, self._version_of(job), max_restarts))
        if outcome.outcome == "waiting" and concluded_job.outcome is None:
            self._wait(concluded_job, outcome.message or "the environment is not ready")
        else:
            self._retry.succeed()
        if outcome.outcome == "failed" and concluded_job.outcome is None:
            logger.warning("Job %s will be resumed after attempt %d", job.job_id, job.attempts)
            self._tell_crash(concluded_job)
        is_too_late = self._is_skip_asked and concluded_job.outcome != "skipped"
        message = f"too late: the job was {outcome.outcome}" if is_too_late else None
        self._status.acknowledge(step=concluded_job.step, message=message)
        return concluded_job

    def _wait(self, job: Job, reason: str) -> None:
        """Put a job back and try again later; this counts as no attempt."""
        logger.warning("Job %s waits %g s: %s", job.job_id, self._retry.seconds, reason)
        self._queue.put_back(job)
        self._retry.put_off()
        self._status.update(state="waiting", status="idle", message=reason)

    def _file(self, job: Job) -> None:
        """Make a completed job's version current if it shall be, and put the job's file where it belongs."""
        self._versions.remove_unfinished()
        if job.outcome == "completed":
            self._versions.roll_forward()
        self._reception.withdraw(job)  # it may have been impossible when the job was made
        place = file_away(self._paths, job)
        self._queue.finish(job)
        logger.info("Filed job %s (%s) as %s", job.job_id, job.outcome, place.relative_to(self._paths.base))
        if job.outcome == "failed":
            self._tell_crash(job)
        else:
            self._status.update(status="completed" if job.outcome == "completed" else "idle")
        self._tell_queue()
        self._housekeeper.wake()

    def _steps_until(self, version: str | None) -> int:
        """Return how many optimizer steps led to a version, over its whole lineage."""
        known = {known_version.name: known_version.facts for known_version in self._versions.list()}
        steps = 0
        while version is not None and version in known:
            facts = known.pop(version)
            steps, version = steps + facts.steps, facts.parent
        return steps

    def _version_of(self, job: Job) -> str | None:
        version = self._versions.version_of_job(job.job_id)
        return version.name if version is not None else None

    # What the world is told

    def _is_idle(self) -> bool:
        return self._reception.is_quiet and not self._queue and not self._housekeeper.is_busy

    def _tell_rest(self) -> None:
        """Say that nothing runs, and why; how the last run ended stays to be seen."""
        ending = self._status.status.status
        if self._control.pause is not None:
            self._status.update(state="paused", status="paused")
        elif self._retry.due_at is not None:
            self._status.update(state="waiting", status="idle")
        elif self._reception.cannot_claim is not None:
            self._status.update(state="waiting", status="idle", message=self._reception.cannot_claim)
        else:
            self._status.update(state="idle", status=ending if ending in ("completed", "crashed") else "idle")

    def _tell_systemd(self) -> None:
        """Show that the loop goes round, say what it is at, and ask for time to save when it is ending."""
        self._notifier.ping()
        status = self._status.status
        said = status.state if self._running is None else f"{status.state} {status.current_file}"
        if said != self._said:
            self._said = said
            self._notifier.send(f"STATUS={said}")
        if self._is_ending():
            self._notifier.send(f"EXTEND_TIMEOUT_USEC={EXTEND_STOP_SECONDS * 1_000_000}")

    def _tell_alerts(self) -> None:
        """Log what alarms and what no longer does, and keep it with the run it concerns, if there is one."""
        for alert in self._status.take_alerts():
            level = logging.WARNING if alert.kind == "raised" else logging.INFO
            logger.log(
                level, "Alert %s %s: %s. %s", alert.category, alert.kind, alert.message, alert.recommendation
            )
            if self._running is not None:
                self._keep_event(self._running, encode_event(alert))
            else:
                self._alert_log.keep(alert)

    def _tell_crash(self, job: Job) -> None:
        self._status.update(status="crashed", error_type=job.failure_kind, error_message=job.message)

    def _tell_queue(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._status.update(version=self._paths.current.readlink().name)
        waiting = self._queue.waiting()
        queue = QueueStatus(
            **self._queue.counts(),
            next_files=tuple(job.name for job in waiting[:SHOWN_NAMES]),
            settling=self._reception.is_settling,
            left_in_place=self._reception.left_in_place,
            trouble=self._reception.trouble or self._housekeeper.trouble,
        )
        self._status.update(queue=queue, batch_queue_size=len(waiting))


def run(
    base: Path,
    *,
    overrides: Sequence[str] = (),
    until_idle: bool = False,
    worker_command: Sequence[str] = WORKER_COMMAND,
    retry_seconds: float = RETRY_SECONDS,
) -> int:
    """Run a daemon on a base folder to its end and return the exit code.

    Raises ConfigError for a wrong configuration and AlreadyRunning when another daemon is at work there.
    """
    if not base.is_dir():
        raise UsageError(f"{base}: found no such folder, expected a base folder; make it first")
    config = load_config(base, overrides)
    require_reporters(config.train.report_to)
    paths = Paths(base.resolve())
    access = access_rules(config.serving, paths.base, os.environ) if config.serving.monitor else None
    paths.create()
    with only_daemon(paths):
        start_logging(paths, config.logging)
        daemon = Daemon(
            paths,
            config,
            until_idle=until_idle,
            worker_command=worker_command,
            notifier=Notifier.from_environment(os.environ),
            access=access,
            retry_seconds=retry_seconds,
        )
        daemon.run()
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the daemon from the command line: ``python daemon.py [--base DIR] [--until-idle] [--set K=V]``."""
    parser = argparse.ArgumentParser(description="Watch inbox/ and train what lies there.")
    parser.add_argument("--base", type=Path, default=Path(), help="the base folder; by default this one")
    parser.add_argument("--until-idle", action="store_true", help="end when every file has been dealt with")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key")
    options = parser.parse_args(arguments)
    try:
        return run(options.base, overrides=options.set, until_idle=options.until_idle)
    except (TrainboxError, OSError) as error:  # no disk, no right: for people, and for whoever restarts us
        sys.stderr.write(f"trainbox: {error}\n")
        return 2 if isinstance(error, UsageError) else 1


if __name__ == "__main__":
    sys.exit(main())
