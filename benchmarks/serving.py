"""How fast the inference server answers, against plain `generate` with the same model and as many prompts.

python -m benchmarks.serving [--base FOLDER] [--tokens N] [--rounds N] [--json]

Server and `generate` take turns in one run, each with the machine to itself. The server is asked over HTTP by
as many threads as there are requests. Then versions are promoted while requests come in.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

import durable
from config import Config, Paths, dump_config, load_config
from errors import TrainboxError
from evaluation.generation import Generator
from serving.client import InferenceClient, find_server
from training.base_model import base_sha256, locate_base, prepare_base
from training.model import choose_precision, known_warnings, load_base, load_generator
from training.versions import HeldOutResult, RecordCounts, Version, VersionFacts, VersionStore

SIZES = (1, 8, 32)
SWAPS = 20
QUESTIONS = (
    "Tell a long story about a lighthouse and its keeper.",
    "Explain in detail how bread is baked.",
    "Describe every room of an old house.",
    "Write a long letter to a friend about the sea.",
    "How does a bicycle work? Explain every part.",
    "Describe the four seasons, one after the other.",
    "What did you learn in the library? Tell all of it.",
    "Give a long account of a journey by train.",
)


def make_version(paths: Paths, config: Config, base: Path, seed: int) -> Version:
    """Publish a version whose adapter was drawn at random and changes little."""
    store = VersionStore(paths)
    staging = store.stage()
    with known_warnings():
        plain: Any = load_base(base, config.model, "float32")
        model = get_peft_model(plain, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
        chance = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_" in name:
                    drawn = torch.randn(weight.shape, generator=chance) * 0.01
                    weight.copy_(drawn.to(weight.device))
        model.save_pretrained(staging)
    facts = VersionFacts(
        *(), parent=None, job_id=f"{seed:06d}-00000000", input_name="benchmark.jsonl", input_sha256="0" * 64,
        base_model=str(base), base_sha256=base_sha256(base), created_at=datetime.now(UTC), config={},
        records=RecordCounts(train=1, held_out=0), steps=1, epochs=1, tokens=1, train_loss=None,
        held_out=HeldOutResult(records=0), decision="promote", decision_reason="a benchmark wants it",
    )  # fmt: skip
    return store.publish(staging, facts)


@contextmanager
def running_server(paths: Paths, config: Config) -> Iterator[InferenceClient]:
    """Start `trainbox serve` on a base folder and yield a client of it."""
    command = [sys.executable, "-m", "cli", "serve", "--base", str(paths.base)]
    with open(paths.base / "server.log", "wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        while (client := find_server(paths, config)) is None:
            if server.poll() is not None:
                sys.exit((paths.base / "server.log").read_text(encoding="utf-8"))
            time.sleep(0.2)
        yield client
    finally:
        server.terminate()
        server.wait()


def asked(size: int) -> list[str]:
    """Return as many different prompts as are asked at once."""
    return [f"{QUESTIONS[number % len(QUESTIONS)]} ({number})" for number in range(size)]


def serve_rate(client: InferenceClient, size: int, tokens: int) -> float:
    """Return tokens a second over `size` requests at once."""
    ready = threading.Barrier(size + 1)

    def one(question: str) -> int:
        ready.wait()
        return generated(client, question, tokens)

    with ThreadPoolExecutor(size) as pool:
        answers = [pool.submit(one, question) for question in asked(size)]
        ready.wait()
        began = time.perf_counter()
        total = sum(answer.result() for answer in answers)
        return total / (time.perf_counter() - began)


def generated(client: InferenceClient, question: str, tokens: int) -> int:
    """Return how many tokens the server generated for one question."""
    answer = client.post("/generate", {"prompt": question, "max_tokens": tokens})
    return int(answer["usage"]["completion_tokens"])


def generate_rate(generator: Generator, size: int, tokens: int) -> float:
    """Return tokens a second of plain `generate` with `size` prompts in one batch."""
    conversations = [[{"role": "user", "content": question}] for question in asked(size)]
    began = time.perf_counter()
    answers = generator.generate(conversations, max_new_tokens=tokens, max_seconds=3600)
    return sum(answer.tokens for answer in answers) / (time.perf_counter() - began)


def first_token_seconds(client: InferenceClient, tokens: int) -> float:
    """Return the time to the first words of a request while eight others are being answered."""
    busy = threading.Event()

    def load(question: str) -> None:
        while not busy.is_set():
            generated(client, question, tokens)

    with ThreadPoolExecutor(8) as pool:
        others = [pool.submit(load, question) for question in asked(8)]
        time.sleep(1.0)
        times = []
        for number in range(5):
            began = time.perf_counter()
            words = client.ask([{"role": "user", "content": f"Hello {number}"}], "current", max_tokens=4)
            next(iter(words))
            times.append(time.perf_counter() - began)
        busy.set()
        for other in others:
            other.result()
    return statistics.median(times)


def swap_failures(client: InferenceClient, versions: Sequence[Version], store: VersionStore) -> int:
    """Promote versions in turn under load; return how many requests failed."""
    done = threading.Event()

    def load(question: str) -> int:
        failures = 0
        while not done.is_set():
            try:
                generated(client, question, 8)
            except TrainboxError:
                failures += 1
        return failures

    with ThreadPoolExecutor(4) as pool:
        loads = [pool.submit(load, question) for question in asked(4)]
        for number in range(SWAPS):
            wanted = store.promote(versions[number % len(versions)], "a benchmark wants it").name
            while client.get("/health")["current"] != wanted:
                time.sleep(0.02)
            generated(client, "Who are you?", 4)
        done.set()
        return sum(one.result() for one in loads)


def measure(base: str, tokens: int, rounds: int) -> dict[str, float]:
    """Return every figure; rates are medians of the rounds, each the server's over that of `generate`."""
    with tempfile.TemporaryDirectory() as folder:
        paths = Paths(Path(folder))
        paths.create()
        settings = [
            f"model.base={base}",
            "serving.inference_port=0",
            "evaluation.per_device_eval_batch_size=64",
        ]
        config = load_config(paths.base, settings)
        precision = choose_precision(config.model)
        config = load_config(paths.base, [*settings, f"model.precision={precision}"])
        durable.write_bytes(paths.config_file, dump_config(config).encode())
        where = prepare_base(paths) if base == "embedded" else locate_base(paths, config.model)
        versions = [make_version(paths, config, where, seed) for seed in (1, 2)]
        store = VersionStore(paths)
        store.promote(versions[0], "a benchmark wants it")
        generator = load_generator(paths, config, "current")
        with running_server(paths, config) as client:
            figures = {
                f"vs_generate_{size}": _paired(
                    partial(serve_rate, client, size, tokens),
                    partial(generate_rate, generator, size, tokens),
                    rounds,
                )
                for size in SIZES
            }
            figures["first_token_ms"] = first_token_seconds(client, tokens) * 1000
            figures["swap_failures"] = swap_failures(client, versions, store)
    return figures


def _paired(ours: Callable[[], float], plain: Callable[[], float], rounds: int) -> float:
    """Return the median ratio of two rates that were measured in turns, after one round to warm up."""
    ratios = []
    for number in range(rounds + 1):
        rates = ours(), plain()
        print(f"  server {rates[0]:7.1f} tokens/s, generate {rates[1]:7.1f} tokens/s", file=sys.stderr)
        if number or not rounds:
            ratios.append(rates[0] / rates[1])
    return statistics.median(ratios)


def main() -> None:
    """Measure and print; ``--json`` prints the figures on the last line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", default="embedded", help="base model; by default the embedded one")
    parser.add_argument("--tokens", type=int, default=64, help="longest answer")
    parser.add_argument("--rounds", type=int, default=3, help="rounds measured at each size")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    figures = measure(options.base, options.tokens, options.rounds)
    for name, value in figures.items():
        print(f"{name:20} {value:10.3f}")
    if options.json:
        print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
