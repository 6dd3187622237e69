"""Checking a file against tokenising its text alone, and the memory that it takes.

``python -m benchmarks.intake [--json]``. Both tokenise the very same texts in like batches on all cores;
what checking adds is reading, parsing, normalising, judging and writing. Each measurement has a process of
its own, whose peak memory is what the kernel says at its end.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from pydoc_data import topics

import orjson

from chat_template import ChatTemplate
from config import DataConfig, Paths, RunPaths
from intake.measuring import BATCH_BYTES
from intake.validation import PlanInputs, check_file

SEED = 20_240_607
SMALL_MB = 20
LARGE_MB = 200
MODEL = Paths(Path()).base_models / "smollm2-135m-instruct"


def make_chats(path: Path, megabytes: float, seed: int = SEED) -> None:
    """Write JSON lines of chats whose sentences come from Python's own manual."""
    draw = random.Random(seed)
    text = re.sub(r"[ \t]+", " ", "\n".join(topics.topics.values()))
    sentences = [part for part in re.split(r"(?<=[.:!?])\s+|\n{2,}", text) if 3 <= len(part) <= 400]
    system_texts = [" ".join(draw.sample(sentences, 2)) for _ in range(20)]
    size = number = 0
    with open(path, "wb") as file:
        while size < megabytes * 1_000_000:
            chat = _make_chat(draw, sentences, system_texts, number)
            size += file.write(json.dumps(chat, ensure_ascii=False).encode("utf-8") + b"\n")
            number += 1


def _make_chat(
    draw: random.Random, sentences: list[str], system_texts: list[str], number: int
) -> dict[str, object]:
    """Make a chat of one to four exchanges; a third of them begin with one of the system texts."""

    def say(most: int) -> str:
        return " ".join(draw.choice(sentences) for _ in range(draw.randint(1, most)))

    messages = [{"role": "system", "content": draw.choice(system_texts)}] if draw.random() < 0.33 else []
    for turn in range(draw.choice((1, 1, 1, 1, 2, 2, 3, 4))):
        question = f"Question {number}.{turn}: {say(4)}"
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": say(8)}]
    return {"id": f"chat-{number:07d}", "source": "manual", "messages": messages}


def tokenise(path: Path, model: Path) -> dict[str, float]:
    """Time the tokenizer alone on the texts of all messages; reading and parsing are not timed."""
    tokenizer = ChatTemplate.load(model).tokenizer
    seconds = cpu_seconds = 0.0
    tokens = 0
    for texts in _text_batches(path):
        start, cpu_start = time.perf_counter(), time.process_time()
        encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        seconds += time.perf_counter() - start
        cpu_seconds += time.process_time() - cpu_start
        tokens += sum(map(len, encodings))
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "tokens": tokens}


def _text_batches(path: Path) -> Iterator[list[str]]:
    texts: list[str] = []
    size = 0
    with open(path, "rb") as lines:
        for line in lines:
            texts += [message["content"] for message in orjson.loads(line)["messages"]]
            size += len(line)
            if size >= BATCH_BYTES:
                yield texts
                texts, size = [], 0
    if texts:
        yield texts


def check(path: Path, model: Path) -> dict[str, float]:
    """Time a whole check as a worker does it, files and report written."""
    template = ChatTemplate.load(model)
    run = RunPaths(path.parent / f"run-{path.stem}")
    start, cpu_start = time.perf_counter(), time.process_time()
    card = check_file(path, DataConfig(), template, seed=1, name=path.name, plan=PlanInputs(8, 1), output=run)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    assert card.usable, card.reason
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "records": card.records_total,
        "peak_mb": _peak_mb(),
    }


def _peak_mb() -> float:
    """Return the highest resident memory of this process so far, in MiB."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1024


def _in_own_process(task: str, path: Path, model: Path) -> dict[str, float]:
    where = ["--file", str(path), "--model", str(model)]
    command = [sys.executable, "-m", "benchmarks.intake", "--task", task, *where]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    result: dict[str, float] = json.loads(output)
    return result


def measure(model: Path, small_mb: float, large_mb: float) -> dict[str, float]:
    """Run the whole benchmark. Tokenising alone is timed before and after the check and averaged.

    Where other processes share the cores, the ratio of processor time tells more than that of the clock.
    """
    with tempfile.TemporaryDirectory(prefix="intake-") as folder:
        small, large = Path(folder, "small.jsonl"), Path(folder, "large.jsonl")
        make_chats(small, small_mb)
        make_chats(large, large_mb)
        before = _in_own_process("tokenise", large, model)
        large_check = _in_own_process("check", large, model)
        after = _in_own_process("tokenise", large, model)
        small_check = _in_own_process("check", small, model)
        alone = (before["seconds"] + after["seconds"]) / 2
        alone_cpu = (before["cpu_seconds"] + after["cpu_seconds"]) / 2
        return {
            "vs_tokenizing": round(large_check["seconds"] / alone, 3),
            "peak_mb_20": round(small_check["peak_mb"], 1),
            "peak_mb_200": round(large_check["peak_mb"], 1),
            "vs_tokenizing_cpu": round(large_check["cpu_seconds"] / alone_cpu, 3),
            "megabytes": round(large.stat().st_size / 1e6, 1),
            "records": large_check["records"],
            "tokens": before["tokens"],
            "check_seconds": round(large_check["seconds"], 2),
            "tokenize_seconds_before": round(before["seconds"], 2),
            "tokenize_seconds_after": round(after["seconds"], 2),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    parser.add_argument(
        "--model", type=Path, default=MODEL, help="folder with the tokenizer and its template"
    )
    parser.add_argument("--small-mb", type=float, default=SMALL_MB)
    parser.add_argument("--large-mb", type=float, default=LARGE_MB)
    parser.add_argument("--task", choices=("tokenise", "check"), help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        task = {"tokenise": tokenise, "check": check}[arguments.task]
        print(json.dumps(task(arguments.file, arguments.model)))
        return
    result = measure(arguments.model, arguments.small_mb, arguments.large_mb)
    for key, value in result.items():
        print(f"{key:<26}{value:>14,}")
    if arguments.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
