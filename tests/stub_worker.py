"""A worker process without torch: the real worker around a run that behaves as its input file says.

The first line of the input is ``{"stub": {...}}`` with any of the fields of `Script`; the lines after it are
the records, ``{"text": …}``, with ``"held_out": true`` for those kept for evaluation. What is real: the
process, its lock, commands and outcomes, the record files, checkpoints, held-out store and versions. What is
not: instead of learning, the stub writes down which records it trained, in every checkpoint and, over the
whole lineage, in every version.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import durable  # noqa: E402 - the repository's root is not on the path of a script in tests/
from config import Paths, RunPaths  # noqa: E402
from errors import FileRefused, JobFailed  # noqa: E402
from intake.formats import Record  # noqa: E402
from intake.outputs import RecordFiles  # noqa: E402
from intake.report import Limits, ReportCard  # noqa: E402
from monitoring.events import (  # noqa: E402
    BestCheckpoint,
    CheckpointEvent,
    Outcome,
    OutcomeEvent,
    PhaseEvent,
    PlanEvent,
    PublishedEvent,
    StepEvent,
    now,
)
from training import checkpoints, worker  # noqa: E402
from training.checkpoints import CheckpointFacts  # noqa: E402
from training.daemon_link import Command, DaemonLink, Interrupted  # noqa: E402
from training.held_out import held_out_keys, keep_held_out  # noqa: E402
from training.jobs import Job  # noqa: E402
from training.versions import HeldOutResult, RecordCounts, Version, VersionFacts, VersionStore  # noqa: E402

ADAPTER = "adapter_model.safetensors"
TRAINED = "trained.json"
"""In a checkpoint: the records of this run, in the order trained. In a version: how often each, ever."""
OUTCOMES: dict[Command, Outcome] = {"pause": "paused", "stop": "stopped", "skip": "skipped"}


@dataclass
class Script:
    """What the stub does with one job."""

    steps: int = 4
    epochs: int = 1
    step_seconds: float = 0.0
    checkpoint_every: int = 0
    """0 makes one checkpoint, at the end."""
    save_seconds: float = 0.0
    """A checkpoint takes so long when a command asks for it."""
    crash_at: int | None = None
    """Dies before this step, by `signal` or else with exit code 7."""
    crash_times: int = 1
    signal: str | None = None
    hang_at: int | None = None
    hold_at: tuple[int, ...] = ()
    """Before each of these steps it waits for a command, or until it is let go."""
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


class StubRun:
    """One job, played by its script."""

    def __init__(self, paths: Paths, job: Job, link: DaemonLink) -> None:
        self._paths = paths
        self._job = job
        self._link = link
        self._run: RunPaths = paths.run(job.job_id)
        self._versions = VersionStore(paths)
        self._script = read_script(paths, job)
        self._trained: list[str] = []

    def carry_out(self) -> OutcomeEvent:
        print(f"stub plays job {self._job.job_id}", file=sys.stderr, flush=True)  # noqa: T201 - a worker's log
        attempt = count_attempt(self._run)
        if self._script.has_child:
            subprocess.Popen(["sleep", "600"], pass_fds=(int(sys.argv[2]),))
        if self._script.says_nonsense:
            os.write(int(sys.argv[2]), b"this is no event\n")
        if attempt <= self._script.wait_times:
            return OutcomeEvent(outcome="waiting", kind="gpu", message="the GPU is busy")
        version = self._versions.version_of_job(self._job.job_id)
        if version is None:
            try:
                self._validate()
                self._train(attempt)
            except Interrupted as interrupted:
                return OutcomeEvent(outcome=OUTCOMES[interrupted.command], step=self._step())
            version = self._publish()
        return OutcomeEvent(
            outcome="completed", version=version.name if version else None, step=self._script.steps
        )

    def _validate(self) -> None:
        self._link.emit(PhaseEvent(phase="validating"))
        if not self._run.report.exists():
            self._check()
        card = ReportCard.model_validate(durable.read_json(self._run.report))
        if not card.usable:
            raise FileRefused(card.reason or "")
        keep_held_out(self._paths, self._job.job_id)

    def _check(self) -> None:
        """Sort the records into those to train and those held out, as the real check does."""
        held_out = held_out_keys(self._paths)
        with RecordFiles(self._run) as files:
            for line, raw in enumerate(read_records(self._run.input(self._job.suffix)), 2):
                record = Record(line=line, kind="text", text=raw["text"])
                keep = files.hold_out if raw.get("held_out") or record.key() in held_out else files.train
                keep(json.dumps(record.to_json()).encode() + b"\n")
            files.publish(report_card(self._job, self._script.refuse))

    def _train(self, attempt: int) -> None:
        """Do the steps that are left after the newest whole checkpoint."""
        script = self._script
        plan = self._plan()
        checkpoints.remove_torn(self._run.folder)
        start = checkpoints.newest(checkpoints.list_checkpoints(self._run.folder))
        done = start.facts.step if start is not None else 0
        self._trained = json.loads((start.folder / TRAINED).read_bytes()) if start is not None else []
        self._link.emit(
            PlanEvent(
                records=8,
                epochs=script.epochs,
                steps_per_epoch=-(-script.steps // script.epochs),
                total_steps=script.steps,
                tokens_per_epoch=80,
                start_step=done,
                parent=self._parent(),
            )
        )
        self._link.emit(PhaseEvent(phase="training"))
        for step in range(done + 1, script.steps + 1):
            self._hold(step)
            self._obey(step)
            self._misbehave(step, attempt)
            time.sleep(script.step_seconds)
            self._trained += plan[len(plan) * (step - 1) // script.steps : len(plan) * step // script.steps]
            self._link.emit(step_event(step, script.steps))
            if step == script.steps or (script.checkpoint_every and step % script.checkpoint_every == 0):
                self._checkpoint(step)
        if script.fail is not None:
            raise JobFailed(script.fail, "as the script says")

    def _plan(self) -> list[str]:
        """Return every record of the file in the order trained, once for each epoch."""
        with open(self._run.train_records, encoding="utf-8") as file:
            return [json.loads(line)["text"] for line in file] * self._script.epochs

    def _parent(self) -> str | None:
        """Return the version this run began with, decided once so that going on later changes nothing."""
        start_file = self._run.folder / "start.json"
        if not start_file.exists():
            current = self._versions.current()
            durable.write_json(start_file, {"parent": None if current is None else current.name})
        parent: str | None = durable.read_json(start_file)["parent"]
        if parent is not None:
            self._versions.verify(parent)
        return parent

    def _hold(self, step: int) -> None:
        """Stand still for as long as the test needs: a busy machine may let it look only seconds later."""
        if step in self._script.hold_at:
            while self._link.command is None and not let_go_file(self._run, step).exists():
                time.sleep(0.01)

    def _obey(self, step: int) -> None:
        """Save and stop before `step` when a command has come."""
        if self._script.is_deaf or self._link.command is None:
            return
        time.sleep(self._script.save_seconds)
        if step > 1 and not self._run.checkpoint(step - 1).exists():
            self._checkpoint(step - 1)
        raise Interrupted(self._link.command)

    def _misbehave(self, step: int, attempt: int) -> None:
        script = self._script
        if step == script.crash_at and attempt <= script.crash_times + script.wait_times:
            print("about to die", file=sys.stderr, flush=True)  # noqa: T201 - a worker's own log
            if script.signal is not None:
                os.kill(os.getpid(), getattr(signal, script.signal))
            os._exit(7)
        if step == script.hang_at and attempt == 1:
            threading.Event().wait()

    def _checkpoint(self, step: int) -> None:
        folder = self._run.checkpoint(step)
        folder.mkdir()
        (folder / ADAPTER).write_bytes(f"{self._job.sha256} after step {step}\n".encode())
        (folder / TRAINED).write_text(json.dumps(self._trained), encoding="utf-8")
        facts = CheckpointFacts(
            step=step,
            epoch=step / self._script.steps,
            tokens=100 * step,
            precision="float32",
            micro_batch=1,
            eval_loss=1 / step,
            is_candidate=True,
        )
        checkpoints.seal(folder, facts)
        best = BestCheckpoint(step=step, path=str(folder), eval_loss=1 / step)
        self._link.emit(CheckpointEvent(step=step, path=str(folder), eval_loss=1 / step, best=best))
        checkpoints.rotate(self._run.folder, 2, "eval_loss")

    def _step(self) -> int:
        last = checkpoints.newest(checkpoints.list_checkpoints(self._run.folder, verify=False))
        return 0 if last is None else last.facts.step

    def _publish(self) -> Version | None:
        self._link.emit(PhaseEvent(phase="publishing"))
        if self._script.is_silent_liar:
            return None
        staging = self._versions.stage()
        last = checkpoints.best(checkpoints.list_checkpoints(self._run.folder), "eval_loss")
        assert last is not None, "the last step makes a checkpoint"
        durable.copy_file(last.folder / ADAPTER, staging / ADAPTER)
        durable.write_json(staging / TRAINED, self._trained_ever(last.folder))
        version = self._versions.publish(staging, self._facts())
        if self._script.publish_then_die:
            os.kill(os.getpid(), signal.SIGKILL)
        self._link.emit(
            PublishedEvent(
                version=version.name, decision="promote", reason="stub", before_loss=2.0, after_loss=1.0
            )
        )
        return version

    def _trained_ever(self, checkpoint: Path) -> dict[str, int]:
        """Return how often each record was trained over the lineage that ends with this run."""
        parent = self._parent()
        counts = Counter(json.loads((checkpoint / TRAINED).read_bytes()))
        if parent is not None:
            counts.update(durable.read_json(self._paths.versions / parent / TRAINED))
        return dict(counts)

    def _facts(self) -> VersionFacts:
        return VersionFacts(
            parent=self._parent(),
            job_id=self._job.job_id,
            input_name=self._job.name,
            input_sha256=self._job.sha256,
            base_model="stub",
            base_sha256="0" * 64,
            created_at=now(),
            config={},
            records=RecordCounts(train=8, held_out=0),
            steps=self._script.steps,
            epochs=self._script.epochs,
            tokens=100 * self._script.steps,
            train_loss=1.0,
            held_out=HeldOutResult(records=0),
            decision="promote",
            decision_reason="stub",
        )


def let_go_file(run: RunPaths, step: int) -> Path:
    """Return the file whose coming lets a run go on that is held before `step`."""
    return run.folder / f"go_on_{step}"


def read_script(paths: Paths, job: Job) -> Script:
    """Return the script in the first line of a job's input."""
    with open(paths.run(job.job_id).input(job.suffix), encoding="utf-8") as file:
        return Script(**json.loads(file.readline()).get("stub", {}))


def read_records(path: Path) -> list[dict[str, str]]:
    """Return the records of an input: all lines after the first that have a text; others only take room."""
    records = [json.loads(line) for line in path.read_bytes().splitlines()[1:]]
    return [record for record in records if "text" in record]


def count_attempt(run: RunPaths) -> int:
    """Note in the run folder that a worker was started for it, and return how often that was so far."""
    durable.append_line(run.folder / "stub_attempts", b"started")
    return len((run.folder / "stub_attempts").read_bytes().splitlines())


def report_card(job: Job, refusal: str | None) -> ReportCard:
    """Return the report card of a file that the stub checked."""
    return ReportCard(
        name=job.name,
        sha256=job.sha256,
        size_bytes=job.size_bytes,
        container=None,
        usable=refusal is None,
        reason=refusal,
        limits=Limits(max_length=1, excess_length="refuse", max_bad_fraction=0.1),
    )


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


def main(arguments: list[str]) -> int:
    """Run the real worker around the stub."""
    return worker.main(arguments, load=lambda: StubRun)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
