"""What several test rooms share: a tiny language model that is real in every part but its size, and a base
folder with jobs and workers."""

from __future__ import annotations

import gc
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

import durable
from config import Paths, RunPaths, dump_config, load_config
from monitoring.events import EventWriter, OutcomeEvent
from training.daemon_link import Command, DaemonLink
from training.jobs import Job, JobStore, Source, make_job_id

ROOT = Path(__file__).parent.parent
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
CORPUS = [
    "the small grey cat sat on the warm mat and watched the rain",
    "a ticket was opened about the printer on the second floor",
    "please answer with one word: red, green, blue, yellow or black",
    '{"product": "printer", "urgent": true, "colour": "grey"}',
    "system user assistant question answer 0 1 2 3 4 5 6 7 8 9",
]
ANSWERS = {
    "red": "the colour is red",
    "green": "green",
    "blue": "the colour is blue, please",
    "grey": "grey as the cat",
}


# Daemons of tests that run side by side cannot all have the port of the page; those that want it say so.
os.environ.setdefault("TRAINBOX_SERVING__MONITOR", "false")

# How long one example takes depends on what else the machine does; it says nothing about the code.
hypothesis_settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
hypothesis_settings.load_profile("any machine")


def pytest_collection() -> None:
    """Look for no garbage while the tests are imported, and never again among what that made.

    It is for good, and to look through it is half the time of a small run.
    """
    gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the quick tests first: those of a real model last, those of whole processes before them."""
    whole_processes = (
        *("test_cli", "test_daemon", "test_worker", "test_gpu_benchmark", "test_presets"),
        *("test_machine", "test_system_unit", "test_user_unit", "test_watched_run"),
        *("test_page", "test_page_looks", "test_inference", "test_asking", "test_vllm"),
    )

    def slowness(item: pytest.Item) -> int:
        if item.get_closest_marker("real_model") is not None:
            return 2
        return int(item.path.stem in whole_processes)

    items.sort(key=slowness)


def chats(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Make conversations of different lengths whose answer follows from the question."""
    draw = random.Random(seed)
    return [
        {
            "messages": [
                {"role": "user", "content": f"{seed}.{number} " + "the rain " * draw.randint(0, 12) + colour},
                {"role": "assistant", "content": ANSWERS[colour]},
            ]
        }
        for number in range(count)
        for colour in [draw.choice(list(ANSWERS))]
    ]


def pairs(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Make preference pairs of different lengths."""
    return [
        {
            "prompt": record["messages"][:1],
            "chosen": record["messages"][1:],
            "rejected": [{"role": "assistant", "content": "no answer " * (number % 4 + 1)}],
        }
        for number, record in enumerate(chats(count, seed))
    ]


@dataclass
class LiveWorker:
    """A worker process and what it has said so far."""

    process: subprocess.Popen[bytes]
    events_fd: int
    events: list[dict[str, Any]] = field(default_factory=list)

    def until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Read events until one is `wanted`; the test's own timeout bounds the wait."""
        for event in self.read():
            if wanted(event):
                return event
        raise AssertionError(f"the worker ended with {self.process.wait()} after {self.events}")

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield every further event until the worker closes its end."""
        buffer = b""
        while chunk := os.read(self.events_fd, 1):
            buffer += chunk
            if chunk == b"\n":
                self.events.append(json.loads(buffer))
                buffer = b""
                yield self.events[-1]

    def tell(self, message: dict[str, str]) -> None:
        """Write one line to the worker."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        """End it as a power cut would, without a chance to clean up."""
        self.process.kill()
        self.process.wait()


class Workshop:
    """One base folder."""

    def __init__(self, base: Path, model: Path) -> None:
        self.paths = Paths(base)
        self.paths.create()
        self.model = model
        self._live: list[LiveWorker] = []

    def job(self, records: Sequence[dict[str, Any]], *overrides: str) -> str:
        """Queue a file of records as the daemon does; return the job's id."""
        content = b"".join(json.dumps(record).encode() + b"\n" for record in records)
        store = JobStore(self.paths)
        number = store.next_number()
        sha256 = f"{number:064x}"[::-1]
        job_id = make_job_id(number, sha256)
        run = self.paths.run(job_id)
        durable.make_folder(run.data)
        run.input(".jsonl").write_bytes(content)
        small = (
            "train.threads=1",
            "model.precision=float32",
            "data.held_out_fraction=0.2",
            "evaluation.sample_prompts=1",
            "evaluation.max_share=1",
            "evaluation.suites=[]",
        )
        settings = [f"model.base={self.model}", "train.learning_rate=1e-2", *small, *overrides]
        run.config_file.write_text(dump_config(load_config(self.paths.base, settings)))
        store.save(
            Job(
                job_id=job_id,
                number=number,
                sha256=sha256,
                size_bytes=len(content),
                name="colours.jsonl",
                place="colours.jsonl",
                suffix=".jsonl",
                source=Source(relative_path="colours.jsonl", device=1, inode=1, mtime_ns=1),
                claimed_at=datetime.now(UTC),
            )
        )
        return job_id

    def folder(self, job_id: str) -> RunPaths:
        return self.paths.run(job_id)

    def carry_out(
        self, job_id: str, *, command: Command | None = None, at_step: int = 0
    ) -> tuple[OutcomeEvent, list[dict[str, Any]]]:
        """Carry a job out in this process; `command` comes while the step `at_step` (from 2 on) is done."""
        from training import worker

        log = self.folder(job_id).folder / "events-of-the-test.jsonl"
        with open(log, "wb", buffering=0) as file:
            link = CommandingLink(EventWriter(file.fileno()), command, at_step)
            outcome = worker.carry_out(self.paths, job_id, link)
        return outcome, [json.loads(line) for line in log.read_bytes().splitlines()]

    def start(self, job_id: str | None, program: Path | None = None) -> LiveWorker:
        """Start a real worker process, or another `program` in its place; give it a job unless `job_id` is
        None."""
        reading, writing = os.pipe()
        what = ["-m", "training.worker"] if program is None else [str(program)]
        process = subprocess.Popen(
            [sys.executable, *what, str(self.paths.base), str(writing), str(os.getpid())],
            stdin=subprocess.PIPE,
            pass_fds=[writing],
            cwd=ROOT,
        )
        os.close(writing)
        live = LiveWorker(process, reading)
        self._live.append(live)
        if job_id is not None:
            live.tell({"job_id": job_id})
        return live

    def close(self) -> None:
        """End every worker that a failed test left."""
        for live in self._live:
            live.kill()
            assert live.process.stdin is not None
            live.process.stdin.close()
            os.close(live.events_fd)


class CommandingLink(DaemonLink):
    """A link to a daemon that gives a command in time for a certain step."""

    def __init__(self, events: EventWriter, command: Command | None, at_step: int) -> None:
        super().__init__(events)
        self._planned = command
        self._at_step = at_step

    def emit(self, event: Any) -> None:
        super().emit(event)
        if event.event == "step" and event.step == self._at_step - 1:
            self.command = self._planned


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that transformers loads as a model: two random Llama layers, a trained BPE, ChatML."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny-model"))


def make_tiny_model(folder: Path) -> Path:
    """Write the tiny model into `folder` and return it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        unk_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    set_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            # Smaller, as usual, its frozen embeddings would keep every answer almost as likely as any other.
            initializer_range=0.2,
            tie_word_embeddings=True,
        )
    )
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def workshop(tmp_path: Path, tiny_model: Path) -> Iterator[Workshop]:
    """An empty base folder whose base model is the tiny one."""
    shop = Workshop(tmp_path, tiny_model)
    yield shop
    shop.close()


@pytest.fixture
def make_chats() -> Callable[..., list[dict[str, Any]]]:
    return chats


@pytest.fixture
def make_pairs() -> Callable[..., list[dict[str, Any]]]:
    return pairs
