"""What people and machines do to a daemon, in random order, and what must hold afterwards.

A sequence drops files, pauses, resumes, skips, stops, promotes and kills against the real daemon with the
stub worker, then lets it finish. ``python -m tests.crash.sequences COUNT SEED`` runs some in one process and
prints what it counted as JSON; `run` has several of those side by side.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import hypothesis
import psutil
from hypothesis import stateful
from hypothesis import strategies as st

import durable
from config import Paths
from errors import UsageError
from intake.inbox import COMPANIONS
from tests.crash.forked_daemon import ROOT, ForkedDaemon, Overdue, wait_until
from tests.crash.invariants import fingerprint, reader_violations
from tests.crash.tally import Harm, Tally
from tests.stub_worker import TRAINED, read_records
from training.jobs import Job, JobStore
from training.versions import Version, VersionStore

STEPS_OF_SEQUENCE = 9
LEAST_THINGS = 6
"""Hypothesis likes the small and the same; what is less than this is run but not counted."""
ATTEMPTS = 100
SIDE_BY_SIDE = 2 * (os.cpu_count() or 1)
"""A sequence waits about as long as it works."""
OVERRIDES = (
    "inbox.settle_seconds=0.04",
    "inbox.poll_seconds=0.02",
    "inbox.unfinished_line_seconds=0.04",
    "monitoring.status_seconds=0.05",
    "worker.max_restarts=1000",
    "worker.stop_grace_seconds=20",
    "disk.min_free_bytes=0",
    # A worker forked from a process with threads may find a lock held for ever; it is ended and begun again.
    "worker.hang_seconds=15",
)
ENDINGS: dict[str, dict[str, Any]] = {
    "refuse": {"refuse": "as the script says"},
    "fail": {"fail": "error"},
    "crash": {"crash_at": 2},
    "die": {"publish_then_die": True},
    "wait": {"wait_times": 1},
}
OUTCOME_OF_ENDING = {"refuse": "refused", "fail": "failed"}
FOLDER_OF_OUTCOME = {"completed": "done", "refused": "rejected", "failed": "failed", "skipped": "skipped"}

MOMENT = st.sampled_from([0.0, 0.01, 0.03, 0.08, 0.15, 0.3])
FOLDER = st.sampled_from(["", "", "high", "low", "team"])
ENDING = st.sampled_from(["", "", "", "", *ENDINGS])


@dataclass(frozen=True)
class Choice:
    """A version chosen by hand, and the newest there was then."""

    version: str
    newest: str


class Site:
    """One base folder under a sequence: what was done to it, and whether it stands that."""

    def __init__(self, base: Path, name: str, tally: Tally) -> None:
        self.paths = Paths(base)
        self.paths.create()
        self.daemon = ForkedDaemon(base, OVERRIDES)
        self._name = name
        self._tally = tally
        self._dropped: list[bytes] = []
        self._skips = 0
        self._choice: Choice | None = None
        self._was_chosen_by_hand = False
        self.history: list[str] = []
        self._attempts_when_paused: int | None = None

    # What is done to it

    def do(self, action: str, **arguments: Any) -> bool:
        """Do one thing and check what must hold at once; False when what must come did not come."""
        self.history.append(action + "".join(f" {value}" for value in arguments.values()))
        try:
            getattr(self, action)(**arguments)
        except Overdue as overdue:
            self._expect(False, "half", f"{overdue}; its log ends: {self.daemon.log()[-600:]}")
            return False
        self.check_now()
        return True

    def drop(self, folder: str, ending: str, steps: int, name: int) -> None:
        """Drop a file that was never there before, under a name that may have been."""
        script = {"steps": steps, "step_seconds": 0.01, "checkpoint_every": 1, **ENDINGS.get(ending, {})}
        content = (
            json.dumps({"stub": script, "number": len(self._dropped), "ending": ending}).encode() + b"\n"
        )
        self._place(content, folder, f"file-{name}")

    def drop_again(self, which: int) -> None:
        """Drop the bytes of an earlier file under another name."""
        if self._dropped:
            self._place(self._dropped[which % len(self._dropped)], "", f"again-{len(self._dropped)}")

    def pause(self, *, is_awaited: bool) -> None:
        durable.write_bytes(self.paths.control("pause"), b"a sequence")
        if is_awaited:
            self._await_pause()

    def resume(self) -> None:
        self._check_pause()
        self._attempts_when_paused = None
        self.paths.control("resume").touch()
        wait_until(lambda: not self.paths.control("resume").exists(), "the resume was obeyed")
        wait_until(lambda: self.daemon.state() != "paused", "the daemon went on")

    def skip(self) -> None:
        self._skips += 1
        self.paths.control("skip").touch()

    def kill(self, *, moment: float) -> None:
        """Kill the daemon, and with it the worker, after a moment; start one first where there is none."""
        if self.daemon.pid is None:
            self.daemon.start()
        time.sleep(moment)
        self.daemon.kill()

    def rest(self, *, moment: float) -> None:
        time.sleep(moment)

    def stop(self, *, by_signal: bool) -> None:
        if by_signal:
            code = self.daemon.terminate()
        else:
            self.paths.control("stop").touch()
            code = self.daemon.wait()
        self._expect(code == 0, "half", f"a daemon that was told to stop ended with {code}")
        self._expect(not self.paths.control("stop").exists(), "half", "a .stop was obeyed but not consumed")

    def start(self) -> None:
        """Start a daemon; a pause that was in force must still be."""
        self.daemon.start()
        self.daemon.wait_ready()
        if self._attempts_when_paused is not None:
            self._await_pause()

    def kill_worker(self, which: int) -> None:
        workers = self.daemon.workers()
        if workers:
            with contextlib.suppress(psutil.NoSuchProcess):
                workers[which % len(workers)].send_signal(signal.SIGKILL)

    def choose(self, which: int, *, is_rollback: bool) -> None:
        """Promote or roll back by hand, as another process than the daemon does."""
        store = VersionStore(self.paths)
        before = [version.name for version in store.list()]
        if not before:
            return
        self._was_chosen_by_hand = True
        try:
            if is_rollback:
                chosen = store.rollback()
            else:
                chosen = store.promote(before[which % len(before)], "by hand", pinned=True)
        except UsageError:
            return  # there is nothing before the first version
        after = [version.name for version in store.list()]
        self._choice = Choice(chosen.name, after[-1]) if after == before else None

    # What must hold

    def check_now(self) -> None:
        """Check what holds at every instant."""
        if self.daemon.pid is not None and not self.daemon.is_alive():
            code = self.daemon.wait()
            self._expect(False, "half", f"the daemon ended by itself with {code}: {self.daemon.log()[-600:]}")
        for violation in reader_violations(self.paths.base):
            self._expect(False, violation.harm, violation.what)

    def finish(self) -> None:
        """Let the daemon finish, twice, and check what must be then."""
        try:
            if self.daemon.pid is not None:
                self.stop(by_signal=True)
            self._check_pause()
            self.paths.control("pause").unlink(missing_ok=True)
            self._run_to_the_end()
            before = fingerprint(self.paths.base)
            self._check_end()
            self._run_to_the_end()
            changed = set(before.items()) ^ set(fingerprint(self.paths.base).items())
            self._expect(not changed, "half", f"a daemon with nothing to do changed {sorted(changed)}")
        except Overdue as overdue:
            self._expect(False, "half", f"{overdue}; its log ends: {self.daemon.log()[-600:]}")

    def close(self) -> None:
        if self.daemon.pid is not None:
            self.daemon.kill()

    def _run_to_the_end(self) -> None:
        self.daemon.start(until_idle=True)
        code = self.daemon.wait()
        self._expect(code == 0, "half", f"the last daemon ended with {code}: {self.daemon.log()[-600:]}")

    def _check_end(self) -> None:
        jobs = JobStore(self.paths).all()
        self._check_files(jobs)
        self._check_jobs(jobs)
        self._check_versions(jobs)
        # An unfinished version is removed when the next one is put together.
        left = [path.name for path in self.paths.base.rglob("*.partial") if not path.match("versions/.v*")]
        self._expect(not left, "half", f"left behind: {left}")
        state = self.daemon.last_state()
        self._expect(state == "stopped", "half", f"the status of an ended daemon says {state}")

    def _check_files(self, jobs: list[Job]) -> None:
        """Each dropped file lies in exactly one place, with its reason beside it."""
        dropped = collections.Counter(_sha256(content) for content in self._dropped)
        found: collections.Counter[str] = collections.Counter()
        for folder in (self.paths.done, self.paths.rejected, self.paths.failed, self.paths.skipped):
            for path in folder.iterdir():
                if not path.name.endswith(COMPANIONS):
                    found[durable.sha256_file(path)] += 1
                    report = path.with_name(path.name + ".report.json")
                    self._expect(
                        report.is_file(), "half", f"{path.name} lies in {folder.name}/ without a report"
                    )
        self._expect(not dropped - found, "lost", f"{(dropped - found).total()} files are in no folder")
        self._expect(not found - dropped, "double", f"{(found - dropped).total()} files are there twice")
        left = sorted(path.name for path in self.paths.processing.iterdir())
        self._expect(not left, "half", f"left in processing/: {left}")
        for job in jobs:
            place = self.paths.inbox / FOLDER_OF_OUTCOME.get(job.outcome or "", "processing") / job.place
            is_there = place.is_file() and durable.sha256_file(place) == job.sha256
            self._expect(is_there, "lost", f"{job.outcome} job {job.job_id} has no file at {place}")

    def _check_jobs(self, jobs: list[Job]) -> None:
        skipped = [job for job in jobs if job.outcome == "skipped"]
        self._expect(len(skipped) <= self._skips, "lost", f"{len(skipped)} skipped, asked for {self._skips}")
        for job in jobs:
            self._expect(job.state == "finished", "half", f"job {job.job_id} is {job.state} at the end")
            expected = OUTCOME_OF_ENDING.get(_first_line(self.paths, job)["ending"], "completed")
            found = f"job {job.job_id} ended {job.outcome}, expected {expected}: {job.message}"
            self._expect(job.outcome in (expected, "skipped"), "half", found)

    def _check_versions(self, jobs: list[Job]) -> None:
        store = VersionStore(self.paths)
        versions = store.list()
        completed = sorted(job.job_id for job in jobs if job.outcome == "completed")
        made = sorted(version.facts.job_id for version in versions)
        self._expect(made == completed, "double", f"versions of jobs {made}, completed were {completed}")
        inputs = [version.facts.input_sha256 for version in versions]
        self._expect(len(set(inputs)) == len(inputs), "double", "the same bytes were trained twice unasked")
        names = [version.name for version in versions]
        for before, version in zip([None, *names], versions, strict=False):
            is_chained = self._was_chosen_by_hand or version.facts.parent == before
            self._expect(is_chained, "half", f"{version.name} continues {version.facts.parent}, not {before}")
            self._check_records(version)
        self._check_current(store, names)

    def _check_records(self, version: Version) -> None:
        """A version has trained each record of its file once, on top of what its parent has trained."""
        run = self.paths.run(version.facts.job_id)
        planned = collections.Counter(record["text"] for record in read_records(run.input(".jsonl")))
        if version.facts.parent is not None:
            planned.update(durable.read_json(self.paths.versions / version.facts.parent / TRAINED))
        trained = collections.Counter(durable.read_json(version.folder / TRAINED))
        for harm, wrong in (("lost", planned - trained), ("double", trained - planned)):
            self._expect(not wrong, cast(Harm, harm), f"{version.name}: records {harm}: {dict(wrong)}")

    def _check_current(self, store: VersionStore, names: list[str]) -> None:
        current = store.current()
        if not names:
            self._expect(current is None, "half", "current without a version")
        elif self._choice is not None:
            expected = self._choice.version if names[-1] == self._choice.newest else names[-1]
            found = current.name if current else None
            self._expect(found == expected, "half", f"current is {found}, expected {expected}")
        else:
            self._expect(current is not None, "half", "versions without a current one")

    # How it is looked at

    def _await_pause(self) -> None:
        def is_paused() -> bool:
            return self.daemon.state() == "paused" or not self.paths.control("pause").exists()

        wait_until(is_paused, "the pause was in force")
        if self.paths.control("pause").exists():
            self._check_pause()
            self._attempts_when_paused = self._attempts()

    def _check_pause(self) -> None:
        """While a pause is in force nothing is begun, by a daemon that was started again neither."""
        before, now = self._attempts_when_paused, self._attempts()
        self._expect(before in (None, now), "double", f"a paused daemon began something: {before} -> {now}")

    def _attempts(self) -> int:
        return sum(len(path.read_bytes().splitlines()) for path in self.paths.runs.glob("*/stub_attempts"))

    def _place(self, content: bytes, folder: str, name: str) -> None:
        """Put a file into the inbox as a careful person does: whole, under a name nothing has there now."""
        target = self.paths.inbox / folder / f"{name}.jsonl"
        if target.exists():
            target = target.with_name(f"{name}-{len(self._dropped)}.jsonl")
        target.parent.mkdir(exist_ok=True)
        aside = self.paths.base / "being-copied"
        aside.write_bytes(content)
        aside.rename(target)
        self._dropped.append(content)

    def _expect(self, is_so: bool, harm: Harm, otherwise: str) -> None:
        if not is_so:
            self._tally.fail(f"{self._name} ({', '.join(self.history)})", harm, otherwise)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _first_line(paths: Paths, job: Job) -> dict[str, Any]:
    with open(paths.run(job.job_id).input(job.suffix), "rb") as file:
        return dict(json.loads(file.readline()))


class Sequence(stateful.RuleBasedStateMachine):
    """One sequence; what may be done next follows from what was done, never from how far the daemon is."""

    tally: Tally
    seed: int
    seen: set[tuple[str, ...]]
    """The sequences so far, as what was done."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory(prefix="trainbox-sequence-")
        self._site = Site(
            Path(self._folder.name) / "base", f"sequence {self.seed}/{self.tally.sequences}", self.tally
        )
        self._is_standing = True
        self._last = ""
        self.is_running = False
        self.is_pausing = False

    def _do(self, action: str, **arguments: Any) -> None:
        self._last = action
        self._is_standing = self._is_standing and self._site.do(action, **arguments)

    def _may(self, action: str) -> bool:
        """Keep a sequence from being the same thing many times over."""
        return self._last != action

    @stateful.initialize(ending=ENDING, steps=st.integers(3, 6))
    def begin(self, ending: str, steps: int) -> None:
        """Start with a file in hand and, by now, a daemon at work on it."""
        self._do("drop", folder="", ending=ending, steps=steps, name=0)
        self.start()

    @stateful.rule(folder=FOLDER, ending=ENDING, steps=st.integers(1, 6), name=st.integers(0, 2))
    def drop(self, folder: str, ending: str, steps: int, name: int) -> None:
        self._do("drop", folder=folder, ending=ending, steps=steps, name=name)

    @stateful.precondition(lambda self: self._may("drop_again"))
    @stateful.rule(which=st.integers(0, 5))
    def drop_again(self, which: int) -> None:
        self._do("drop_again", which=which)

    @stateful.precondition(lambda self: self._may("rest"))
    @stateful.rule(moment=MOMENT)
    def rest(self, moment: float) -> None:
        self._do("rest", moment=moment)

    @stateful.precondition(lambda self: not self.is_pausing)
    @stateful.rule(moment=MOMENT, is_awaited=st.booleans())
    def pause(self, moment: float, is_awaited: bool) -> None:
        self._do("rest", moment=moment)
        self._do("pause", is_awaited=is_awaited and self.is_running)
        self.is_pausing = True

    @stateful.precondition(lambda self: self.is_running and self.is_pausing)
    @stateful.rule()
    def resume(self) -> None:
        self._do("resume")
        self.is_pausing = False

    @stateful.precondition(lambda self: self._may("skip"))
    @stateful.rule(moment=MOMENT)
    def skip(self, moment: float) -> None:
        self._do("rest", moment=moment)
        self._do("skip")

    @stateful.precondition(lambda self: self.is_running)
    @stateful.rule(moment=MOMENT, by_signal=st.booleans())
    def stop(self, moment: float, by_signal: bool) -> None:
        self._do("rest", moment=moment)
        self._do("stop", by_signal=by_signal)
        self.is_running = False

    @stateful.precondition(lambda self: self._may("kill"))
    @stateful.rule(moment=MOMENT)
    def kill(self, moment: float) -> None:
        self._do("kill", moment=moment)
        self.is_running = False

    @stateful.precondition(lambda self: self.is_running)
    @stateful.rule(which=st.integers(0, 1), moment=MOMENT)
    def kill_worker(self, which: int, moment: float) -> None:
        self._do("rest", moment=moment)
        self._do("kill_worker", which=which)

    @stateful.precondition(lambda self: not self.is_running)
    @stateful.rule()
    def start(self) -> None:
        self._do("start")
        self.is_running = True

    @stateful.precondition(lambda self: self._may("choose"))
    @stateful.rule(which=st.integers(0, 3), is_rollback=st.booleans())
    def choose(self, which: int, is_rollback: bool) -> None:
        self._do("choose", which=which, is_rollback=is_rollback)

    def teardown(self) -> None:
        if self._is_standing:
            self._site.finish()
        self._site.close()
        self._folder.cleanup()
        history = tuple(self._site.history)
        if len(history) >= LEAST_THINGS and history not in self.seen:
            self.seen.add(history)
            self.tally.sequences += 1


def run_here(count: int, seed: int) -> Tally:
    """Run at least so many sequences in this process, one after the other; it must have no other thread.

    Only sequences that differ and in which enough was done are counted.
    """
    tally = Tally()
    seen: set[tuple[str, ...]] = set()
    for attempt in range(ATTEMPTS):
        machine = type("Seeded", (Sequence,), {"tally": tally, "seed": seed, "seen": seen})
        settings = hypothesis.settings(
            max_examples=max(2, count - tally.sequences),
            stateful_step_count=STEPS_OF_SEQUENCE,
            phases=[hypothesis.Phase.generate],
            deadline=None,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        seeded = hypothesis.seed(seed * ATTEMPTS + attempt)(machine)
        stateful.run_state_machine_as_test(seeded, settings=settings)
        if tally.sequences >= count:
            return tally
    raise RuntimeError(f"found {tally.sequences} sequences that differ, expected {count}")


def run(count: int, seed: int) -> Tally:
    """Run about so many sequences, several processes of them side by side, and add up what they counted."""
    drivers = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.crash.sequences", str(share), str(seed * 1000 + number)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
        )
        for number, share in enumerate(_shares(count))
    ]
    total = Tally()
    for driver in drivers:
        said, _ = driver.communicate()
        if driver.returncode != 0:
            raise RuntimeError(f"a process of sequences ended with {driver.returncode}: {said.decode()}")
        total += Tally(**json.loads(said))
    return total


def _shares(count: int) -> list[int]:
    drivers = min(count, SIDE_BY_SIDE)
    return [count // drivers + (number < count % drivers) for number in range(drivers)]


def main(arguments: list[str]) -> int:
    """Run sequences in this process and print what they counted."""
    tally = run_here(int(arguments[0]), int(arguments[1]))
    sys.stdout.write(json.dumps(dataclasses.asdict(tally)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
