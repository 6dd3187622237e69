"""A worker process without torch: it speaks the worker's protocol and behaves as its input file says.

The first line of the input is ``{"stub": {...}}`` with any of the fields of `Script`. Checkpoints and
versions are real folders, made by the code the real worker uses.
"""

from __future__ import annotations

import ctypes
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import durable  # noqa: E402 - the repository's root is not on the path of a script in tests/
from config import Paths, RunPaths  # noqa: E402
from monitoring.events import (  # noqa: E402
    BestCheckpoint,
    CheckpointEvent,
    EventWriter,
    HeartbeatEvent,
    OutcomeEvent,
    PhaseEvent,
    PlanEvent,
    PublishedEvent,
    StepEvent,
    now,
)
from training.jobs import Job, JobStore  # noqa: E402
from training.versions import HeldOutResult, RecordCounts, VersionFacts, VersionStore  # noqa: E402

PR_SET_PDEATHSIG = 1


@dataclass
class Script:
    """What the stub does with one job."""

    steps: int = 4
    step_seconds: float = 0.0
    checkpoint_every: int = 0
    save_seconds: float = 0.0
    """A checkpoint takes so long when a command asks for it."""
    crash_at: int | None = None
    """Dies before this step, by `signal` or else with exit code 7."""
    crash_times: int = 1
    signal: str | None = None
    hang_at: int | None = None
    refuse: str | None = None
    fail: str | None = None
    wait_times: int = 0
    """Says so many times that the environment is not ready."""
    is_deaf: bool = False
    """Ignores commands."""
    has_child: bool = False
    """Leaves a child behind that holds the pipes open."""
    is_silent_liar: bool = False
    """Says completed without a version."""
    says_nonsense: bool = False
    publish_then_die: bool = False


class StubWorker:
    """One job, played by its script."""

    def __init__(self, paths: Paths, events: EventWriter) -> None:
        self._paths = paths
        self._events = events
        self._commands: queue.SimpleQueue[str] = queue.SimpleQueue()

    def main(self) -> None:
        assignment = sys.stdin.readline()
        if not assignment:
            return
        job = JobStore(self._paths).get(json.loads(assignment)["job_id"])
        assert job is not None
        threading.Thread(target=self._hear_commands, daemon=True).start()
        self._play(job, self._paths.run(job.job_id), read_script(self._paths, job))

    def _hear_commands(self) -> None:
        for line in sys.stdin:
            self._commands.put(json.loads(line)["command"])

    def _play(self, job: Job, run: RunPaths, script: Script) -> None:
        print(f"stub plays job {job.job_id}", file=sys.stderr, flush=True)  # noqa: T201 - a worker's own log
        attempt = count_attempt(run)
        if script.has_child:
            subprocess.Popen(["sleep", "600"], pass_fds=(int(sys.argv[2]),))
        if script.says_nonsense:
            os.write(int(sys.argv[2]), b"this is no event\n")
        if attempt <= script.wait_times:
            self._events.emit(OutcomeEvent(outcome="waiting", kind="gpu", message="the GPU is busy"))
            return
        self._events.emit(PhaseEvent(phase="validating"))
        if script.refuse is not None:
            durable.write_bytes(run.report_text, b"card: refused\n")
            durable.write_json(run.report, {"schema_version": 1, "usable": False, "reason": script.refuse})
            self._events.emit(OutcomeEvent(outcome="refused", message=script.refuse))
            return
        self._train(job, run, script, attempt)

    def _train(self, job: Job, run: RunPaths, script: Script, attempt: int) -> None:
        done = max((int(path.name.split("-")[1]) for path in run.folder.glob("checkpoint-*")), default=0)
        parent = VersionStore(self._paths).current()
        plan = PlanEvent(
            records=8,
            epochs=1,
            steps_per_epoch=script.steps,
            total_steps=script.steps,
            tokens_per_epoch=80,
            start_step=done,
            parent=parent.name if parent is not None else None,
        )
        self._events.emit(plan)
        self._events.emit(PhaseEvent(phase="training"))
        for step in range(done + 1, script.steps + 1):
            command = self._command(script)
            if command is not None:
                time.sleep(script.save_seconds)
                self._checkpoint(run, step - 1)
                self._events.emit(OutcomeEvent(outcome=_OUTCOMES[command], step=step - 1))  # type: ignore[arg-type]
                return
            self._misbehave(script, step, attempt)
            time.sleep(script.step_seconds)
            self._events.emit(step_event(step, script.steps))
            if script.checkpoint_every and step % script.checkpoint_every == 0:
                self._checkpoint(run, step)
        if script.fail is not None:
            self._events.emit(OutcomeEvent(outcome="failed", kind=script.fail, message="as the script says"))
            return
        self._publish(job, script)

    def _command(self, script: Script) -> str | None:
        return None if script.is_deaf or self._commands.empty() else self._commands.get()

    def _misbehave(self, script: Script, step: int, attempt: int) -> None:
        if step == script.crash_at and attempt <= script.crash_times + script.wait_times:
            print("about to die", file=sys.stderr, flush=True)  # noqa: T201 - a worker's own log
            if script.signal is not None:
                os.kill(os.getpid(), getattr(signal, script.signal))
            os._exit(7)
        if step == script.hang_at and attempt == 1:
            threading.Event().wait()

    def _checkpoint(self, run: RunPaths, step: int) -> None:
        folder = run.checkpoint(step)
        if step == 0 or folder.exists():
            return
        staging = folder.with_name(f".{folder.name}.partial")
        if staging.exists():
            durable.remove_tree(staging)
        staging.mkdir()
        durable.write_bytes(staging / "state", b"%d" % step)
        durable.seal_folder(staging)
        durable.publish_folder(staging, folder)
        best = BestCheckpoint(step=step, path=str(folder), eval_loss=1 / step)
        self._events.emit(CheckpointEvent(step=step, path=str(folder), eval_loss=1 / step, best=best))

    def _publish(self, job: Job, script: Script) -> None:
        self._events.emit(PhaseEvent(phase="publishing"))
        if not script.is_silent_liar:
            versions = VersionStore(self._paths)
            staging = versions.stage()
            durable.write_bytes(staging / "adapter_model.safetensors", job.sha256.encode())
            version = versions.publish(staging, facts_of(job, versions, script.steps))
            if script.publish_then_die:
                os.kill(os.getpid(), signal.SIGKILL)
            self._events.emit(
                PublishedEvent(
                    version=version.name, decision="promote", reason="stub", before_loss=2.0, after_loss=1.0
                )
            )
        self._events.emit(OutcomeEvent(outcome="completed", step=script.steps))


_OUTCOMES = {"pause": "paused", "stop": "stopped", "skip": "skipped"}


def read_script(paths: Paths, job: Job) -> Script:
    """Return the script in the first line of a job's input."""
    with open(paths.run(job.job_id).input(job.suffix), encoding="utf-8") as file:
        return Script(**json.loads(file.readline()).get("stub", {}))


def count_attempt(run: RunPaths) -> int:
    """Note in the run folder that a worker was started for it, and return how often that was so far."""
    durable.append_line(run.folder / "stub_attempts", b"started")
    return len((run.folder / "stub_attempts").read_bytes().splitlines())


def step_event(step: int, total_steps: int) -> StepEvent:
    return StepEvent(
        step=step,
        total_steps=total_steps,
        epoch=step / total_steps,
        loss=1 / step,
        learning_rate=1e-4,
        grad_norm=1.0,
        tokens=100,
        seconds=0.5,
    )


def facts_of(job: Job, versions: VersionStore, steps: int) -> VersionFacts:
    """Return the facts of the version that the stub makes of a job."""
    parent = versions.current()
    return VersionFacts(
        parent=parent.name if parent is not None else None,
        job_id=job.job_id,
        input_name=job.name,
        input_sha256=job.sha256,
        base_model="stub",
        base_sha256="0" * 64,
        created_at=now(),
        config={},
        records=RecordCounts(train=8, held_out=0),
        steps=steps,
        epochs=1,
        tokens=100 * steps,
        train_loss=1.0,
        held_out=HeldOutResult(records=0),
        decision="promote",
        decision_reason="stub",
    )


if __name__ == "__main__":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[3]):
        sys.exit("the daemon is gone")
    writer = EventWriter(int(sys.argv[2]))
    writer.emit(HeartbeatEvent())
    StubWorker(Paths(Path(sys.argv[1])), writer).main()
