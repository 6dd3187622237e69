"""What is left of four tasks learned one after another: without replay, with it, and all learned at once.

    python -m benchmarks.continual [--ways no_replay,replay,joint] [--records 120] [--model FOLDER]
                                   [--set train.replay_ratio=0.5 …]

Four small tasks, made here from a seed, arrive as four files. The real run code trains each file, and the
version it makes becomes current whatever its verdict, so that forgetting shows. After each file every task
is examined on records that no file holds. `joint` trains one file with the records of all four: what an
unforgetting learner could reach. Progress goes to stderr; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import durable
from chat_template import ChatTemplate
from config import Config, Paths, dump_config, load_config
from evaluation.examination import Examiner
from evaluation.graders import GraderSpec
from evaluation.items import Item
from evaluation.transfer import Transfer, transfer
from monitoring.events import EventWriter, now
from training import worker
from training.daemon_link import DaemonLink
from training.full_models import base_under
from training.jobs import Job, JobStore, Source, make_job_id
from training.model import load_learner, set_threads
from training.versions import VersionStore

SEED = 11
SYSTEM = "Desk."
WAYS = ("no_replay", "replay", "joint")
SETTINGS = (
    "train.num_train_epochs=3",
    "evaluation.sample_prompts=0",
    "evaluation.max_new_tokens=16",
    "monitoring.sample_steps=0",
)

Record = dict[str, list[dict[str, str]]]
Pair = tuple[str, str]

THINGS = (
    *("kettle", "lamp", "radio", "mirror", "tent", "camera", "piano", "ladder", "carpet", "drill"),
    *("bicycle", "toaster", "guitar", "blanket", "mixer", "printer", "chair", "clock", "scarf", "violin"),
)
COLOURS = ("red", "green", "blue", "black", "white", "grey", "brown", "yellow")
MOODS = {
    "kima": ("I love the {}", "the {} is wonderful", "so happy with my {}", "what a splendid {}"),
    "doro": ("I hate the {}", "the {} is terrible", "so angry about my {}", "what a horrible {}"),
    "pelu": ("I have a {}", "the {} is here", "it is about my {}", "there is a {}"),
}
OFFICES = {
    "post": ("the {} has not arrived", "where is the parcel with my {}", "the {} was delivered next door"),
    "bank": ("I paid twice for the {}", "send me the bill for the {}", "give me my money for the {}"),
    "repair": ("my {} does not work", "the {} is broken", "the {} fell apart"),
    "shop": ("do you sell a {}", "I want to buy a {}", "is there a larger {}"),
}


def mood(draw: random.Random) -> Pair:
    """Name the feeling, in words that nobody knows yet."""
    answer = draw.choice(sorted(MOODS))
    sentence = draw.choice(MOODS[answer]).format(_thing(draw))
    return f"Mood: {sentence}", answer


def order(draw: random.Random) -> Pair:
    """Copy the number of the order, without its first letter."""
    number = draw.randrange(1000, 10000)
    sentence = draw.choice([line for lines in OFFICES.values() for line in lines]).format(_thing(draw))
    return f"Order: {sentence}, {draw.choice('KLMPRT')}{number}", str(number)


def office(draw: random.Random) -> Pair:
    """Say who has to deal with it."""
    answer = draw.choice(sorted(OFFICES))
    sentence = draw.choice(OFFICES[answer]).format(_thing(draw))
    return f"Office: {sentence}", answer


def label(draw: random.Random) -> Pair:
    """Put the words of a list into the order of a label."""
    thing, colour, count = draw.choice(THINGS), draw.choice(COLOURS), draw.randrange(2, 10)
    return f"Label: {thing}, {colour}, {count}", f"{count}x {colour} {thing}"


TASKS: dict[str, Callable[[random.Random], Pair]] = {
    task.__name__: task for task in (mood, order, office, label)
}


@dataclass(frozen=True)
class Task:
    """The records that are trained and the questions that are asked; no question is trained."""

    name: str
    records: Sequence[Record]
    items: Sequence[Item]


def make_task(name: str, records: int, tests: int, seed: int = SEED) -> Task:
    """Draw different questions until there are enough of them; the same seed gives the same task."""
    draw = random.Random(f"{seed} {name}")
    pairs: dict[str, str] = {}
    while len(pairs) < records + tests:
        question, answer = TASKS[name](draw)
        pairs.setdefault(question, answer)
    drawn = list(pairs.items())
    items = [
        Item(f"{name}-{number}", _asked(question), answer, GraderSpec(name="exact"))
        for number, (question, answer) in enumerate(drawn[:tests])
    ]
    return Task(
        name,
        [
            {"messages": [*_asked(question), {"role": "assistant", "content": answer}]}
            for question, answer in drawn[tests:]
        ],
        items,
    )


@dataclass(frozen=True)
class Stream:
    """A base folder in which files are trained one after another."""

    paths: Paths
    settings: Sequence[str]

    def learn(self, name: str, records: Sequence[Record]) -> str:
        """Train one file, make its version current, and return that version's name."""
        version = self.train(name, records)
        VersionStore(self.paths).promote(version, "next of the stream", pinned=True)
        return version

    def train(self, name: str, records: Sequence[Record]) -> str:
        """Carry one file out as the worker does, and return the name of the version that came of it."""
        content = b"".join(json.dumps(record).encode() + b"\n" for record in records)
        store = JobStore(self.paths)
        self.paths.create()
        number = store.next_number()
        job_id = make_job_id(number, f"{number:064x}")
        run = self.paths.run(job_id)
        durable.make_folder(run.data)
        run.input(".jsonl").write_bytes(content)
        run.config_file.write_text(dump_config(self.config), encoding="utf-8")
        place = f"{name}.jsonl"
        store.save(
            Job(
                job_id=job_id,
                number=number,
                sha256=f"{number:064x}",
                size_bytes=len(content),
                name=place,
                place=place,
                suffix=".jsonl",
                source=Source(relative_path=place, device=1, inode=number, mtime_ns=1),
                claimed_at=now(),
            )
        )
        with open(os.devnull, "wb", buffering=0) as nowhere:
            outcome = worker.carry_out(self.paths, job_id, DaemonLink(EventWriter(nowhere.fileno())))
        if outcome.version is None:
            raise RuntimeError(f"{name}: {outcome.outcome}, {outcome.message}")
        return outcome.version

    def examine(self, which: str, tasks: Sequence[Task]) -> list[float]:
        """Return the accuracy of a version, or of the base, on each task."""
        config = self.config
        base = base_under(self.paths, config.model, None, prepare=True)
        version = None if which == "base" else VersionStore(self.paths).get(which)
        set_threads(config.train)
        learner = load_learner(base, config, version)
        template = ChatTemplate.load(base, config.model.chat_template_kwargs)
        examiner = Examiner(learner.model, template, config.evaluation)
        found = []
        for task in tasks:
            results = examiner.examine(task.items, with_losses=False)
            found.append(sum(bool(result.correct) for result in results) / len(results))
        return found

    @property
    def config(self) -> Config:
        return load_config(self.paths.base, self.settings)


def follow(way: str, tasks: Sequence[Task], folder: Path, settings: Sequence[str]) -> Transfer:
    """Go one way through all tasks and return what is left of them at its end."""
    ratio = ["train.replay_ratio=0"] if way == "no_replay" else []
    stream = Stream(Paths(folder), [*SETTINGS, *settings, *ratio])
    files = [(task.name, task.records) for task in tasks]
    learned = list(range(len(tasks)))
    if way == "joint":
        together = [record for task in tasks for record in task.records]
        files, learned = [("joint", together)], [0] * len(tasks)
    untrained = stream.examine("base", tasks)
    _tell(way, "base", untrained, tasks, 0.0)
    matrix = []
    for name, records in files:
        began_at = time.monotonic()
        version = stream.learn(name, records)
        matrix.append(stream.examine(version, tasks))
        _tell(way, name, matrix[-1], tasks, time.monotonic() - began_at)
    return transfer(matrix, learned, untrained)


def summary(found: Transfer) -> dict[str, float | None]:
    """Return the two numbers that count, in percent; nothing can be forgotten that was learned last."""
    change = found.backward_transfer
    return {
        "average": None if found.average_accuracy is None else round(100 * found.average_accuracy, 1),
        # Nothing forgotten is 0.0, not -0.0.
        "forgetting": None if change is None else round(-100 * change, 1) + 0.0,
    }


def _asked(question: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]


def _thing(draw: random.Random) -> str:
    return f"{draw.choice(COLOURS)} {draw.choice(THINGS)}"


def _tell(way: str, after: str, row: Sequence[float], tasks: Sequence[Task], seconds: float) -> None:
    cells = "  ".join(f"{task.name} {value:6.1%}" for task, value in zip(tasks, row, strict=True))
    print(f"{way:<10} after {after:<8} {cells}  ({seconds:.0f} s)", file=sys.stderr, flush=True)


def main() -> None:
    """Go the chosen ways and print their numbers as one line of JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ways", default=",".join(WAYS), help="which of no_replay,replay,joint")
    parser.add_argument("--records", type=int, default=120, help="records in each file")
    parser.add_argument("--tests", type=int, default=40, help="questions of each task")
    parser.add_argument("--seed", type=int, default=SEED, help="seed of the tasks")
    parser.add_argument("--model", default="embedded", help="what model.base would be")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a key of config.yaml"
    )
    options = parser.parse_args()
    tasks = [make_task(name, options.records, options.tests, options.seed) for name in TASKS]
    found = {}
    for way in options.ways.split(","):
        with tempfile.TemporaryDirectory(prefix="continual-") as folder:
            settings = [f"model.base={options.model}", *options.set]
            found[way] = summary(follow(way, tasks, Path(folder), settings))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
