"""Everything that only a GPU can tell: ``python -m benchmarks.gpu [--json] [--quick]``.

Speed and model-FLOPs utilisation of LoRA (r=16, all linear layers, bf16) on random models of the shapes of
Qwen3-0.6B and Qwen3-8B: ours, the same loop bare, and TRL's SFTTrainer with its defaults; peak memory with
every process capped at 24 GB; packed against single logits; a run that was killed and went on; a real
out-of-memory that the trainer recovers from. Nothing is downloaded.

``--device cpu`` runs the same code on a toy, to see that it works; its numbers mean nothing.

Where a machine has torch with CUDA but no package index, carry the rest along. Where there is an index:
``pip download --no-deps --dest wheels`` with the versions in constraints.txt of transformers, trl, peft,
accelerate, datasets, safetensors, tokenizers, pyarrow, pydantic, pydantic-settings, orjson, filelock, scipy,
psutil, rich and whatever ``pip check`` misses; there: ``pip install --no-index --no-deps wheels/*.whl``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.contenders import Contender, Speed, Work, measure
from benchmarks.gpu_checks import compare, packed_logits, recover_from_shortage, too_large, train_to_the_end
from benchmarks.shapes import LARGE, SMALL, TINY, peak_flops
from training.worker import ENVIRONMENT

Result = TypeVar("Result")
MEMORY_CAP_BYTES = 24 * 10**9
"""What a card sold as 24 GB holds, less what CUDA and a display take of it."""
CONTENDERS: tuple[Contender, ...] = ("ours", "ours packed", "bare", "TRL defaults")
PRELOADED = ["benchmarks.contenders", "benchmarks.gpu_checks"]
console = Console(stderr=True, highlight=False)


class OutOfMemory(Exception):
    """A measurement did not fit under the memory cap."""


@dataclasses.dataclass(frozen=True)
class Bench:
    """Where everything is measured: each measurement in a fresh process, whose memory is capped."""

    device: torch.device
    folder: Path

    def run(self, function: Callable[..., Result], *arguments: Any) -> Result | None:
        """Return what `function` returns in a process of its own, or None when that was killed.

        Raises OutOfMemory when the device had too little memory, RuntimeError when it failed otherwise.
        """
        # Where CUDA was touched a forked child cannot use it; without it a fork saves the imports.
        context: SpawnContext | ForkServerContext = multiprocessing.get_context("spawn")
        if self.device.type == "cpu":
            context = multiprocessing.get_context("forkserver")
        receiver, sender = context.Pipe(duplex=False)
        context.set_forkserver_preload(PRELOADED)
        process = context.Process(target=_in_child, args=(sender, self.device, function, arguments))
        process.start()
        sender.close()
        try:
            kind, value = receiver.recv()
        except EOFError:
            return None
        finally:
            process.join()
        if kind == "out of memory":
            raise OutOfMemory(value)
        if kind == "error":
            raise RuntimeError(f"{function.__name__}: {value}")
        return value  # type: ignore[no-any-return]

    def new_folder(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.folder))


def _in_child(
    sender: Connection, device: torch.device, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    """Run `function` under the memory cap and send what it returns, or why it does not."""
    # transformers renamed gradient checkpointing; TRL and PEFT still use the old name.
    warnings.filterwarnings("ignore", "`(is_)?gradient_checkpointing` is deprecated", FutureWarning)
    try:
        if device.type == "cuda":
            total = torch.cuda.get_device_properties(device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, MEMORY_CAP_BYTES / total), device)
        sender.send(("done", function(*arguments)))
    except torch.OutOfMemoryError as error:
        sender.send(("out of memory", str(error)))
    except Exception as error:  # noqa: BLE001 - the border of a process
        sender.send(("error", f"{type(error).__name__}: {error}"))


def speed_rows(bench: Bench, work: Work, peak: float) -> dict[str, Any]:
    """Measure every contender on one shape."""
    rows: dict[str, Any] = {}
    for contender in CONTENDERS:
        console.print(f"{work.shape.name}: {contender}")
        try:
            speed = bench.run(measure, contender, work, bench.new_folder())
        except OutOfMemory:
            rows[contender] = {"out_of_memory": True}
            continue
        rows[contender] = _speed_row(speed, peak)
    return rows


def _speed_row(speed: Speed | None, peak: float) -> dict[str, Any]:
    if speed is None:
        raise RuntimeError("a measurement was killed from outside, probably because main memory ran out")
    return {
        "tokens_per_second": round(speed.tokens_per_second, 1),
        "mfu": round(speed.flops_per_second / peak, 4),
        "peak_gb": round(speed.peak_bytes / 1e9, 2),
    }


def logits_row(bench: Bench, work: Work) -> dict[str, Any]:
    """Compare packed with single logits in both precisions."""
    console.print(f"{work.shape.name}: packed logits")
    row = {}
    for dtype in (torch.float32, torch.bfloat16):
        differences = bench.run(packed_logits, work, dtype, bench.new_folder())
        assert differences is not None
        row[str(dtype).removeprefix("torch.")] = dataclasses.asdict(differences)
    return row


def resume_row(bench: Bench, work: Work) -> dict[str, Any]:
    """Compare a killed and resumed run with one left alone; if they differ, with full determinism too."""
    row = {"default": _resume_once(bench, work, is_deterministic=False)}
    if not row["default"]["resumed"]["is_equal"]:
        row["deterministic"] = _resume_once(bench, work, is_deterministic=True)
    return row


def _resume_once(bench: Bench, work: Work, *, is_deterministic: bool) -> dict[str, Any]:
    console.print(f"{work.shape.name}: kill and resume" + (", full determinism" if is_deterministic else ""))
    alone, again, broken = (bench.new_folder() for _ in range(3))
    straight = bench.run(train_to_the_end, work, alone, False, is_deterministic)
    twin = bench.run(train_to_the_end, work, again, False, is_deterministic)
    killed = bench.run(train_to_the_end, work, broken, True, is_deterministic)
    resumed = bench.run(train_to_the_end, work, broken, False, is_deterministic)
    assert straight is not None and twin is not None and resumed is not None
    assert killed is None, "the run was to be killed and was not"
    assert straight.steps == resumed.steps == work.steps
    return {
        "steps": work.steps,
        "resumed": dataclasses.asdict(compare(straight, resumed)),
        # What two runs differ in that nobody killed is the arithmetic's own noise.
        "repeated": dataclasses.asdict(compare(straight, twin)),
    }


def shortage_row(bench: Bench, work: Work) -> dict[str, Any]:
    """Provoke an out-of-memory and see the trainer recover."""
    console.print(f"{work.shape.name}: out of memory")
    recovery = bench.run(recover_from_shortage, too_large(work), bench.new_folder())
    assert recovery is not None
    return dataclasses.asdict(recovery)


def works(device: torch.device, *, is_quick: bool) -> list[Work]:
    """Return what is trained: a toy on the CPU, else what presets/ train, with fewer steps if `is_quick`."""
    if device.type == "cpu":
        return [Work(TINY, device, micro_batch=2, accumulation=2, longest=32, warm_up_steps=1, timed_steps=3)]
    warm_up, timed = (2, 4) if is_quick else (5, 20)
    return [
        Work(SMALL, device, 4, 4, 1024, warm_up, timed),
        Work(LARGE, device, 2, 8, 1024, warm_up, timed, is_checkpointed=True),
    ]


def measure_all(bench: Bench, *, is_quick: bool) -> dict[str, Any]:
    """Measure everything; the checks use the smallest shape."""
    every_work = works(bench.device, is_quick=is_quick)
    name, peak, peak_source = _describe(bench)
    small = every_work[0]
    few_steps = dataclasses.replace(small, warm_up_steps=2, timed_steps=6)
    return {
        "device": name,
        "torch": torch.__version__,
        "peak_tflops": round(peak / 1e12, 3),
        "peak_source": peak_source,
        "memory_cap_gb": MEMORY_CAP_BYTES / 1e9 if bench.device.type == "cuda" else None,
        "speed": {work.shape.name: speed_rows(bench, work, peak) for work in every_work},
        "packed_logits": logits_row(bench, small),
        "resume": resume_row(bench, few_steps),
        "out_of_memory": shortage_row(bench, dataclasses.replace(small, warm_up_steps=1, timed_steps=2)),
    }


def _describe(bench: Bench) -> tuple[str, float, str]:
    described = bench.run(describe_device, bench.device)
    assert described is not None
    return described


def describe_device(device: torch.device) -> tuple[str, float, str]:
    """Return the name of `device` and what it is taken to reach."""
    name = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU (a toy run, not a measurement)"
    )
    return name, *peak_flops(device)


def to_tables(results: dict[str, Any]) -> list[Table]:
    """Show the results to a person."""
    cap = results["memory_cap_gb"]
    title = f"{results['device']}, torch {results['torch']}"
    caption = (
        f"utilisation of {results['peak_tflops']:g} TFLOP/s ({results['peak_source']}), with 4 N T + 6 A T + "
        f"4 H S + attention for a step (benchmarks/shapes.py); memory cap: {f'{cap:g} GB' if cap else 'none'}"
    )
    speed = Table(*("shape", "trainer", "tokens/s", "utilisation", "peak GB"), title=title, caption=caption)
    for shape, rows in results["speed"].items():
        for contender, row in rows.items():
            speed.add_row(shape, contender, *_speed_cells(row))
    checks = Table("check", "result")
    for precision, row in results["packed_logits"].items():
        checks.add_row(
            f"packed = single logits, {precision}",
            f"largest difference {row['packed']:.2g} (without positions {row['without_positions']:.2g}, "
            f"largest logit {row['largest_logit']:.2g})",
        )
    for mode, row in results["resume"].items():
        checks.add_row(f"killed and resumed, {mode}", _resume_cell(row))
    checks.add_row("out of memory", _shortage_cell(results["out_of_memory"]))
    return [speed, checks]


def _speed_cells(row: dict[str, Any]) -> tuple[str, str, str]:
    if row.get("out_of_memory"):
        return "out of memory", "", ""
    return f"{row['tokens_per_second']:,.0f}", f"{row['mfu']:.1%}", f"{row['peak_gb']:.1f}"


def _resume_cell(row: dict[str, Any]) -> str:
    resumed, repeated = row["resumed"], row["repeated"]
    verdict = "bit for bit as if nothing happened" if resumed["is_equal"] else "differs"
    return (
        f"{verdict}: largest difference {resumed['max_difference']:.2g} after {row['steps']} steps "
        f"({repeated['max_difference']:.2g} between two runs left alone)"
    )


def _shortage_cell(row: dict[str, Any]) -> str:
    kind = "pretended" if row["is_pretended"] else "real"
    return (
        f"{kind}: micro-batch {row['micro_batch_before']} → {row['micro_batch_after']}, "
        f"{row['steps']} of {row['planned_steps']} steps done, loss {row['loss']:.3f}, peak "
        f"{row['peak_bytes'] / 1e9:.1f} GB"
    )


def main(arguments: list[str] | None = None) -> int:
    """Measure, print tables, and with ``--json`` the results as one object on the last line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print the results as JSON on the last line")
    parser.add_argument("--quick", action="store_true", help="fewer steps: a minute or two, less exact")
    parser.add_argument(
        "--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a toy run that proves the code"
    )
    options = parser.parse_args(arguments)
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif not torch.cuda.is_available():
        sys.stderr.write("no CUDA device: nothing measured\n")
        return 2
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    device = torch.device("cuda", 0) if options.device == "cuda" else torch.device("cpu")
    with tempfile.TemporaryDirectory(prefix="trainbox-gpu-") as folder:
        results = measure_all(Bench(device, Path(folder)), is_quick=options.quick)
    for table in to_tables(results):
        Console(highlight=False).print(table)
    if options.json:
        print(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
