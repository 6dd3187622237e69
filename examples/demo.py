"""`make demo`: drop a file, watch a real model learn from it, and see what it answered before and after.

Everything goes through the front door: a base folder with a config.yaml, a file in its inbox, and the
daemon as a process of its own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

import durable
from chat_template import ChatTemplate, Message
from config import Config, Paths, load_config
from errors import TrainboxError
from examples.make_tickets import HELD_OUT_FILE, TRAIN_FILE, read_answer
from monitoring.training_status import TrainingStatus, read_status
from training.versions import Version, VersionStore

ROOT = Path(__file__).resolve().parent.parent
PROMISED_VALID = 0.95
PROMISED_EXACT = 0.5
SHOWN_EXAMPLES = 3
REFRESH_SECONDS = 0.25
SETTINGS = {
    "inbox": {"settle_seconds": 1.0, "poll_seconds": 0.5},
    "train": {"num_train_epochs": 2, "learning_rate": 1e-3, "per_device_train_batch_size": 4},
    # The exam has 48 tickets of its own.
    "data": {"held_out_fraction": 0.05},
    "evaluation": {
        "per_device_eval_batch_size": 16,
        "max_new_tokens": 64,
        "sample_prompts": 1,
        "max_share": 0.25,
    },
    "monitoring": {"status_seconds": 0.5},
}
PHASES = {
    "idle": "Waiting for the file to settle",
    "starting": "Starting the worker",
    "validating": "Checking every record",
    "loading": "Loading the base model",
    "training": "Training",
    "evaluating": "Testing on held-out records",
    "publishing": "Publishing the version",
}

console = Console(highlight=False)


@dataclass(frozen=True)
class Exam:
    """How one model did on the held-out tickets."""

    answers: list[str]
    valid: float
    """Share of answers that are strict JSON of the right form."""
    exact: float
    """Share of answers that are right in every field."""
    loss: float
    """Nats per assistant token."""


class DemoFailed(TrainboxError):
    """The demo could not show what it promises."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo and return the exit code: 0 only when the model has learned what it should."""
    parser = argparse.ArgumentParser(description="Train a small model on 200 tickets and ask it 48 others.")
    parser.add_argument("--base", type=Path, help="a new folder to work in; by default demo/, demo-2/, …")
    options = parser.parse_args(arguments)
    try:
        run(new_folder(options.base))
    except TrainboxError as error:
        console.print(Text(f"demo: {error}", "red"))
        return 1
    except KeyboardInterrupt:
        console.print("\nInterrupted; the demo can be started again at any time.")
        return 130
    return 0


def run(folder: Path) -> None:
    """Make a base folder, train in it, and show what has changed."""
    console.rule("[bold]trainbox: the folder that trains")
    base_model = prepare_model()
    paths = make_base_folder(folder, base_model)
    console.print(f"Dropped [bold]{TRAIN_FILE.name}[/] into [bold]{shown(paths.inbox)}/[/]\n")
    train(paths)
    version = VersionStore(paths).current()
    if version is None:
        raise DemoFailed(failure_of(paths))
    before, after = examine(paths, version)
    show(paths, version, before, after)
    if after.valid < PROMISED_VALID or after.exact < PROMISED_EXACT:
        raise DemoFailed(
            f"found {after.valid:.0%} valid and {after.exact:.0%} exact answers, expected at least "
            f"{PROMISED_VALID:.0%} and {PROMISED_EXACT:.0%}; please report this with {shown(paths.log_file)}"
        )


def new_folder(wanted: Path | None) -> Path:
    """Return the folder to work in, which must not exist: a demo changes nothing of a person's."""
    if wanted is None:
        return free_folder(ROOT / "demo")
    if wanted.exists():
        raise DemoFailed(f"{wanted}: exists already, expected a new folder; give another --base")
    return wanted


def free_folder(wanted: Path) -> Path:
    """Return the first of ``demo``, ``demo-2``, ``demo-3`` … that does not exist."""
    numbered = (wanted.with_name(f"{wanted.name}-{number}") for number in itertools.count(2))
    return next(folder for folder in itertools.chain([wanted], numbered) if not folder.exists())


def prepare_model() -> Path:
    """Prepare the embedded base model where all base folders of this checkout can use it."""
    project = Paths(ROOT)
    project.create()
    with console.status("Preparing the base model SmolLM2-135M-Instruct (half a minute the first time)"):
        finished = subprocess.run(
            [sys.executable, "-m", "cli", "prepare", "--base", str(ROOT), "--set", "model.base=embedded"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    if finished.returncode != 0:
        raise DemoFailed((finished.stderr.strip().splitlines() or ["the base model cannot be prepared"])[-1])
    from training.base_model import locate_base

    folder = locate_base(project, Config().model)
    console.print(f"Base model ready in [bold]{shown(folder)}[/]")
    return folder


def make_base_folder(folder: Path, base_model: Path) -> Paths:
    """Make a base folder with its own config.yaml and the example tickets in its inbox."""
    paths = Paths(folder.resolve())
    paths.create()
    settings = {"model": {"base": str(base_model)}, **SETTINGS}
    durable.write_bytes(paths.config_file, yaml.safe_dump(settings, sort_keys=False).encode())
    durable.copy_file(TRAIN_FILE, paths.inbox / TRAIN_FILE.name)
    return paths


def train(paths: Paths) -> None:
    """Run the daemon until it has nothing left to do, showing how it gets on."""
    command = [sys.executable, str(ROOT / "daemon.py"), "--base", str(paths.base), "--until-idle"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with open(console_log(paths), "wb") as log:
        daemon = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            watch(daemon, paths)
        except KeyboardInterrupt:
            console.print("Saving a checkpoint …")
            daemon.send_signal(signal.SIGTERM)
            daemon.wait()
            console.print(f"Go on from there with: [bold]{trainbox()} run --base {shown(paths.base)}[/]")
            raise
    if daemon.returncode != 0:
        raise DemoFailed(failure_of(paths))


def watch(daemon: subprocess.Popen[bytes], paths: Paths) -> None:
    """Show a bar for each phase and the latest answer to a held-out prompt, until the daemon ends."""
    progress = Progress(
        TextColumn("{task.description:30}"),
        BarColumn(bar_width=12),
        TextColumn("{task.fields[numbers]}"),
        TimeElapsedColumn(),
    )
    tasks: dict[str, TaskID] = {}
    with Live(progress, console=console, refresh_per_second=4) as live:
        while daemon.poll() is None:
            reading = read_status(paths)
            if reading is not None and reading.status.pid == daemon.pid:
                show_phase(progress, tasks, reading.status)
                live.update(Group(progress, *latest_example(reading.status)))
            time.sleep(REFRESH_SECONDS)
        for task in progress.tasks:
            finish(progress, task.id)
        live.update(progress)
    console.print()


def show_phase(progress: Progress, tasks: dict[str, TaskID], status: TrainingStatus) -> None:
    """Bring the bar of the daemon's phase up to date; the bars of earlier phases are full."""
    description = PHASES.get(status.state)
    if description is None or (status.state == "idle" and len(tasks) > 1):
        return
    if status.state not in tasks:
        for earlier in tasks.values():
            finish(progress, earlier)
        tasks[status.state] = progress.add_task(description, total=None, numbers="")
    done, total, numbers = status.phase_done, status.phase_total, ""
    if status.state == "training" and status.batch_step is not None:
        done, total, numbers = status.batch_step, status.batch_total_steps, training_numbers(status)
    progress.update(tasks[status.state], completed=done or 0, total=total, numbers=numbers)


def finish(progress: Progress, task: TaskID) -> None:
    """Fill a bar and stop its clock."""
    progress.update(task, total=1, completed=1)
    progress.stop_task(task)


def training_numbers(status: TrainingStatus) -> str:
    """Return step, loss and time left in one line."""
    parts = [f"{status.batch_step}/{status.batch_total_steps}"]
    if status.loss is not None:
        parts.append(f"loss {status.loss:.3f}")
    if status.eta_seconds is not None:
        parts.append(f"{status.eta_seconds:.0f} s left")
    return ", ".join(parts)


def latest_example(status: TrainingStatus) -> list[Panel]:
    """Return what the model in training last said to a prompt it has never been trained on."""
    if not status.recent_examples:
        return []
    example = status.recent_examples[-1]
    mark, colour = ("right", "green") if example.matches else ("not yet", "yellow")
    body = Text.assemble((example.prompt, "dim"), "\n", (example.model_output, colour))
    return [Panel(body, title=f"asked at step {example.step}: {mark}", title_align="left", width=100)]


def examine(paths: Paths, version: Version) -> tuple[Exam, Exam]:
    """Ask the base model and the version the same held-out tickets."""
    with console.status(f"Asking 48 tickets it has never seen: the base model, then {version.name}"):
        from peft import PeftModel

        from training.base_model import locate_base
        from training.model import choose_precision, load_base, set_threads

        config = load_config(paths.base)
        set_threads(config.train)
        folder = locate_base(paths, config.model)
        template = ChatTemplate.load(folder, config.model.chat_template_kwargs)
        model: Any = load_base(folder, config.model, choose_precision(config.model))
        before = sit_exam(model, template, config)
        with warnings.catch_warnings():
            # PEFT reads an attribute that transformers has renamed.
            warnings.simplefilter("ignore", FutureWarning)
            model = PeftModel.from_pretrained(model, version.folder)
        return before, sit_exam(model, template, config)


def sit_exam(model: Any, template: ChatTemplate, config: Config) -> Exam:
    """Have a model answer every held-out ticket, and measure what the right answers cost it."""
    from evaluation.generation import Generator

    conversations = held_out()
    questions = [messages[:-1] for messages in conversations]
    answers = [answer.text for answer in Generator(model, template, config.evaluation).generate(questions)]
    expected = [read_answer(messages[-1]["content"]) for messages in conversations]
    read = [read_answer(answer) for answer in answers]
    return Exam(
        answers=answers,
        valid=sum(answer is not None for answer in read) / len(read),
        exact=sum(answer == right for answer, right in zip(read, expected, strict=True)) / len(read),
        loss=held_out_loss(model, template, conversations),
    )


def held_out_loss(model: Any, template: ChatTemplate, conversations: list[list[Message]]) -> float:
    """Return the mean loss of the right answers, in nats per assistant token."""
    import torch

    from evaluation.losses import target_log_probs

    total, count = 0.0, 0
    with torch.inference_mode():
        for messages in conversations:
            encoded = template.encode_messages(messages)
            ids = torch.tensor([encoded.input_ids], device=model.device)
            targets = torch.cat([torch.arange(*span, device=model.device) for span in encoded.spans])
            # The hidden state before a token is the one that predicts it.
            total -= float(target_log_probs(model, ids, targets - 1, ids[0, targets]).sum())
            count += len(targets)
    return total / count


def held_out() -> list[list[Message]]:
    """Return the conversations of the held-out file."""
    return [json.loads(line)["messages"] for line in HELD_OUT_FILE.read_text(encoding="utf-8").splitlines()]


def show(paths: Paths, version: Version, before: Exam, after: Exam) -> None:
    """Print some answers, the numbers, where the version lies and what to type next."""
    conversations = held_out()
    for number in of_different_kinds(conversations):
        _, question, right = conversations[number]
        table = Table.grid(padding=(0, 2))
        table.add_row("asked", Text(question["content"], "bold"))
        table.add_row("before", Text(shorten(before.answers[number]), "yellow"))
        is_right = read_answer(after.answers[number]) == read_answer(right["content"])
        table.add_row("after", Text(after.answers[number], "green" if is_right else "red"))
        console.print(Panel(table))
    numbers = Table("on 48 held-out tickets", "before", "after")
    numbers.add_row("valid JSON", f"{before.valid:.0%}", f"[bold green]{after.valid:.0%}")
    numbers.add_row("exact match", f"{before.exact:.0%}", f"[bold green]{after.exact:.0%}")
    numbers.add_row("held-out loss", f"{before.loss:.3f}", f"[bold green]{after.loss:.3f}")
    console.print(numbers)
    system = conversations[0][0]["content"]
    base = shown(paths.base)
    console.print(f"\nVersion [bold]{version.name}[/] lies in [bold]{shown(version.folder)}/[/]")
    console.print(Text(f"{version.facts.decision}: {version.facts.decision_reason}\n", "dim"))
    console.print("What to type next:")
    prompt = "My drill has not come, order Q1234. Please hurry."
    for command in (
        f'{trainbox()} generate --base {base} --system "{system}" --prompt "{prompt}"',
        f"{trainbox()} versions --base {base}",
        f"cp YOUR_FILE.jsonl {base}/inbox/ && {trainbox()} run --base {base}",
    ):
        console.print(Text(f"  {command}", "bold"), soft_wrap=True)


def of_different_kinds(conversations: list[list[Message]]) -> list[int]:
    """Return the numbers of a few conversations whose tickets are about different problems."""
    first: dict[str, int] = {}
    for number, messages in enumerate(conversations):
        first.setdefault(json.loads(messages[-1]["content"])["problem"], number)
    return list(first.values())[:SHOWN_EXAMPLES]


def failure_of(paths: Paths) -> str:
    """Say in one line why there is no version, with the place to look."""
    reading = read_status(paths)
    reason = reading.status.error_message or reading.status.message if reading is not None else None
    if reason is None:
        said = console_log(paths).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        reason = said[-1] if said else "the daemon said nothing"
    return f"the daemon made no version: {reason}; see {shown(paths.log_file)} and {shown(paths.run_logs)}/"


def console_log(paths: Paths) -> Path:
    """Return the file that takes what the daemon writes to its terminal."""
    return paths.log_file.with_name("console.log")


def shorten(text: str, limit: int = 160) -> str:
    """Return `text` in one line of at most `limit` characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def trainbox() -> str:
    """Return the `trainbox` command of this installation as a person here would type it."""
    return f"{shown(Path(sys.executable).parent)}/trainbox"


def shown(path: Path) -> str:
    """Return a path as a person here would type it."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


if __name__ == "__main__":
    sys.exit(main())
