"""How fast training is: a run against a bare torch loop, and against TRL's SFTTrainer with its defaults.

    python -m benchmarks.training [--json] [--model FOLDER] [--rounds 6] [--steps 2]

The contestants take turns of a few optimizer steps in one process, so that whatever else the machine does
meets all of them. Speed is useful tokens (padding not counted) a second; a ratio is the median over the
rounds. The bare loop gets the very batches of the run before it, made ready beforehand, and does only what
must be done: forward, the language-model head where a label is, backward, clipping, AdamW.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from chat_template import ChatTemplate
from config import Config, Paths, RunPaths, load_config
from examples.make_tickets import TRAIN_FILE
from monitoring.events import EventWriter
from monitoring.live_monitor import watch
from training.base_model import locate_base
from training.batches import Batch, collate
from training.callbacks import RunCallback
from training.daemon_link import DaemonLink
from training.dataset import TokenRows, tokenise_run
from training.model import hash_tokenizer, load_learner
from training.trainer import PlannedTrainer, build_trainer

EPOCHS = 50
"""More than any benchmark lasts; the contestants are stopped."""


class Finished(Exception):
    """The benchmark has seen enough of a contestant."""


@dataclass
class Contestant:
    """One way to train, in its own thread; only the one whose turn it is runs."""

    name: str
    train: Callable[[Contestant], None]
    steps_per_turn: int
    turn: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)
    is_over: bool = False
    tokens: int = 0
    seconds: float = 0.0
    steps: int = 0
    error: BaseException | None = None
    _since: float = 0.0

    def start(self) -> None:
        """Let it prepare itself and do one turn, which is not measured."""
        threading.Thread(target=self._run, daemon=True).start()
        self.take_turn()

    def take_turn(self) -> tuple[int, float]:
        """Let it do its steps and return the useful tokens and the seconds they took."""
        self.tokens, self.steps = 0, 0
        self._since = time.perf_counter()
        self.turn.set()
        self.done.wait()
        self.done.clear()
        if self.error is not None:
            raise self.error
        return self.tokens, self.seconds

    def end(self) -> None:
        """End its thread."""
        self.is_over = True
        self.turn.set()

    def finish_step(self, tokens: int) -> None:
        """Called by the contestant after each optimizer step; waits when its turn is over."""
        self.tokens += tokens
        self.steps += 1
        if self.steps == self.steps_per_turn:
            self.seconds = time.perf_counter() - self._since
            self._pass_on()

    def _pass_on(self) -> None:
        self.turn.clear()
        self.done.set()
        self.turn.wait()
        if self.is_over:
            raise Finished

    def _run(self) -> None:
        self.turn.wait()
        try:
            self.train(self)
            self.error = RuntimeError(f"{self.name} ran out of data")
        except Finished:
            return
        except Exception as error:  # noqa: BLE001 - handed to the main thread
            self.error = error
        self.done.set()


class StepEnd(TrainerCallback):  # type: ignore[misc]
    """Tells a contestant when a trainer has done a step."""

    def __init__(self, contestant: Contestant, tokens: Callable[[], int]) -> None:
        self._contestant = contestant
        self._tokens = tokens

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Count here, where logging and checkpoints of the step before are over."""
        if tokens := self._tokens():
            self._contestant.finish_step(tokens)


@dataclass
class Setting:
    """What all contestants train on."""

    base: Path
    config: Config
    folder: Path
    rows: TokenRows
    pad_token_id: int
    batches: list[list[Batch]] = field(default_factory=list)
    """The micro-batches of each step of the run's last turn."""


def train_run(setting: Setting, contestant: Contestant, *, is_watched: bool = True) -> None:
    """Train as a worker does: events, log lines, checkpoints and, if `is_watched`, close looks included."""
    learner = load_learner(setting.base, setting.config, None)
    with open(os.devnull, "wb", buffering=0) as nowhere:
        callback = RunCallback(
            RunPaths(setting.folder),
            setting.config,
            learner.precision,
            DaemonLink(EventWriter(nowhere.fileno())),
        )
        trainer = build_trainer(learner, setting.folder, setting.config, "chat", [callback])
        live = watch(learner.model.named_parameters(), setting.config.monitoring) if is_watched else None
        trainer.setup(setting.config, setting.rows, None, setting.pad_token_id, live=live)
        callback.attach(trainer, None)
        counted = remember_batches(trainer, setting, contestant)
        trainer.add_callback(StepEnd(contestant, counted))
        trainer.train()


def remember_batches(trainer: PlannedTrainer, setting: Setting, contestant: Contestant) -> Callable[[], int]:
    """Keep the batches of the run's current turn for the bare loop; return a count of the last step."""
    step = trainer.training_step
    size = setting.config.train.per_device_train_batch_size
    last: list[int] = []

    def remembering(model: Any, rows: Any, items: Any = None) -> Any:
        if contestant.steps == 0:
            setting.batches.clear()
        setting.batches.append(
            [
                collate(rows[at : at + size], packed=False, pad_token_id=setting.pad_token_id)
                for at in range(0, len(rows), size)
            ]
        )
        last[:] = [sum(batch.tokens for batch in setting.batches[-1])]
        return step(model, rows, items)

    trainer.training_step = remembering  # type: ignore[method-assign, assignment]
    return lambda: last.pop() if last else 0


def train_bare(setting: Setting, contestant: Contestant) -> None:
    """Train with nothing but torch on the batches of the run's last turn."""
    learner = load_learner(setting.base, setting.config, None)
    model, train = learner.model, setting.config.train
    causal = model.get_base_model()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=train.learning_rate, fused=True)
    device = next(model.parameters()).device
    model.train()
    while True:
        for batches in list(setting.batches):
            labels = sum(len(batch.targets) for batch in batches)
            for batch in (batch.to(device) for batch in batches):
                is_bf16 = learner.precision == "bfloat16"
                with torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_bf16):
                    hidden = causal.model(input_ids=batch.input_ids, use_cache=False).last_hidden_state
                    logits = causal.lm_head(hidden.flatten(0, 1)[batch.positions])
                loss = torch.nn.functional.cross_entropy(logits.float(), batch.targets, reduction="sum")
                (loss / labels).backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(weights, train.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            contestant.finish_step(sum(batch.tokens for batch in batches))


def train_with_trl(setting: Setting, contestant: Contestant) -> None:
    """Train the same records with TRL's defaults; only what is ours to choose is set."""
    train = setting.config.train
    records = [json.loads(line) for line in TRAIN_FILE.read_text(encoding="utf-8").splitlines()]
    trainer = SFTTrainer(
        model=str(setting.base),
        args=SFTConfig(
            output_dir=str(setting.folder / "trl"),
            per_device_train_batch_size=train.per_device_train_batch_size,
            learning_rate=train.learning_rate,
            num_train_epochs=EPOCHS,
            report_to="none",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
        ),
        train_dataset=Dataset.from_list([{"messages": record["messages"]} for record in records]),
        peft_config=LoraConfig(
            r=train.lora_r, lora_alpha=train.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )
    step = trainer.training_step
    last: list[int] = []

    def counting(model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
        last[:] = [int(inputs["attention_mask"].sum())]
        return step(model, inputs, *rest, **named)

    trainer.training_step = counting
    trainer.add_callback(StepEnd(contestant, lambda: last.pop() if last else 0))
    trainer.train()


def measure(setting: Setting, rounds: int, steps: int) -> dict[str, list[float]]:
    """Let the contestants take turns; return for each the useful tokens a second of every round."""
    ways = {"run": train_run, "bare": train_bare, "trl_defaults": train_with_trl}
    contestants = [Contestant(name, partial(way, setting), steps) for name, way in ways.items()]
    return take_turns(contestants, rounds, leader=contestants[0])


def take_turns(
    contestants: list[Contestant], rounds: int, *, leader: Contestant | None = None
) -> dict[str, list[float]]:
    """Let the contestants take turns; return for each the useful tokens a second of every round.

    The order turns round from round to round, so that no one always follows the same other; a `leader`, whose
    batches the others need, begins every round.
    """
    rates: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    for contestant in contestants:
        contestant.start()
    others = [contestant for contestant in contestants if contestant is not leader]
    for number in range(rounds):
        first = [] if leader is None else [leader]
        for contestant in (*first, *(others if number % 2 else reversed(others))):
            tokens, seconds = contestant.take_turn()
            rates[contestant.name].append(tokens / seconds)
    for contestant in contestants:
        contestant.end()
    return rates


def prepare(model: Path | None, folder: Path) -> Setting:
    """Tokenise the example's records as a run does."""
    overrides = [f"train.num_train_epochs={EPOCHS}", "train.eval_steps=1000000"]
    if model is not None:
        overrides.append(f"model.base={model.resolve()}")
    config = load_config(folder, overrides)
    base = locate_base(Paths(Path.cwd()), config.model)
    template = ChatTemplate.load(base, config.model.chat_template_kwargs)
    records = folder / "train.jsonl"
    lines = TRAIN_FILE.read_text(encoding="utf-8").splitlines()
    records.write_text(
        "".join(json.dumps({"line": at, **json.loads(line)}) + "\n" for at, line in enumerate(lines, 1)),
        encoding="utf-8",
    )
    rows = tokenise_run(
        *(folder / "tokens", {"train": records}, template, hash_tokenizer(base, config.model)),
        config.data,
        on_progress=lambda done: None,
    )
    return Setting(base, config, folder, rows["train"], template.pad_token_id)


def ratio(rates: dict[str, list[float]], other: str) -> float:
    """Return the median over the rounds of the run's speed divided by another's."""
    pairs = zip(rates["run"], rates[other], strict=True)
    return round(statistics.median(ours / theirs for ours, theirs in pairs), 3)


def main() -> int:
    """Measure, print a table, and with --json the ratios on the last line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument("--model", type=Path, help="a model folder; by default the embedded one")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=2, help="optimizer steps in a turn")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        setting = prepare(options.model, Path(folder))
        rates = measure(setting, options.rounds, options.steps)
    result = {"vs_bare": ratio(rates, "bare"), "vs_trl_defaults": ratio(rates, "trl_defaults")}
    print(f"{'contestant':14} {'tokens/s':>10} {'lowest':>10} {'highest':>10}")
    for name, values in rates.items():
        print(f"{name:14} {statistics.median(values):10.1f} {min(values):10.1f} {max(values):10.1f}")
    print(f"run / bare loop     {result['vs_bare']:6.3f}   (at least 0.95)")
    print(f"run / TRL defaults  {result['vs_trl_defaults']:6.3f}   (at least 1.8)")
    if options.json:
        print(json.dumps(result))
    sys.stdout.flush()
    # The contestants' threads wait for a turn that will not come.
    os._exit(0)


if __name__ == "__main__":
    main()
