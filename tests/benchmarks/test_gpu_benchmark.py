"""The GPU benchmark, as far as a CPU can tell: its arithmetic is right, and every row of it runs on a toy."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen3ForCausalLM

from benchmarks.contenders import Work
from benchmarks.gpu import CONTENDERS, main, to_tables
from benchmarks.gpu_checks import Ending, compare, packed_logits, recover_from_shortage, too_large
from benchmarks.shapes import (
    LARGE,
    LORA_RANK,
    SMALL,
    TINY,
    Shape,
    random_learner,
    random_rows,
    training_flops,
)
from training.model import trainable_parameters

ROOT = Path(__file__).parent.parent.parent
CPU = torch.device("cpu")
TOY = Work(TINY, CPU, micro_batch=2, accumulation=2, longest=32, warm_up_steps=1, timed_steps=2)

# PEFT reads an attribute that transformers has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def run_benchmark(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *arguments],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_a_cuda_device_it_says_so_in_one_line_and_exits_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["--json"]) == 2
    assert capsys.readouterr() == ("", "no CUDA device: nothing measured\n")


def test_the_toy_run_fills_every_row(tmp_path: Path) -> None:
    finished = run_benchmark("--device", "cpu", "--json", TMPDIR=str(tmp_path))
    assert finished.returncode == 0, finished.stderr
    results = json.loads(finished.stdout.splitlines()[-1])
    assert list(results["speed"]["tiny"]) == list(CONTENDERS)
    assert all(row["tokens_per_second"] > 0 for row in results["speed"]["tiny"].values())
    for row in results["packed_logits"].values():
        assert row["packed"] < 0.05 * row["without_positions"]
    assert results["resume"]["default"]["resumed"] == {"is_equal": True, "max_difference": 0.0}
    assert "deterministic" not in results["resume"]
    shortage = results["out_of_memory"]
    assert shortage["micro_batch_after"] < shortage["micro_batch_before"]
    assert shortage["steps"] == shortage["planned_steps"]
    assert list(tmp_path.glob("trainbox-gpu-*")) == []


@pytest.mark.parametrize("shape", [SMALL, LARGE, TINY], ids=lambda shape: shape.name)
def test_a_shape_counts_the_parameters_that_the_model_has(shape: Shape) -> None:
    with torch.device("meta"):
        model = Qwen3ForCausalLM(shape.config())
    linear = [
        module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    ]
    assert shape.linear_parameters == sum(linear)
    assert len(linear) == 7 * shape.layers


def test_a_learner_trains_as_many_parameters_as_its_shape_says() -> None:
    assert trainable_parameters(random_learner(TINY, CPU).model) == TINY.adapter_parameters
    assert LORA_RANK == 16


def test_the_published_sizes_are_those_of_the_real_models() -> None:
    for shape, billions in ((SMALL, 0.596), (LARGE, 8.19)):
        embeddings = shape.vocabulary * shape.hidden * (1 if shape.is_tied else 2)
        assert shape.linear_parameters + embeddings == pytest.approx(billions * 1e9, rel=0.002)


def test_the_arithmetic_of_a_step_is_what_torch_counts() -> None:
    length = 32
    learner = random_learner(TINY, CPU, "float32")
    # So that the gradient is computed down to the first layer's inputs, as in every other layer.
    learner.model.enable_input_require_grads()
    with FlopCounterMode(display=False) as counter:
        logits = learner.model(input_ids=torch.full((1, length), 5)).logits
        logits.sum().backward()
    attention = 6 * TINY.layers * TINY.heads * TINY.head_size * length**2
    expected = training_flops(TINY, [length], length) - attention
    counted = counter.get_flop_counts()["Global"]
    linear = sum(flops for name, flops in counted.items() if str(name) in ("aten.mm", "aten.addmm"))
    assert linear == pytest.approx(expected, rel=0.01)


def test_random_records_are_the_same_each_time_and_within_their_length(tmp_path: Path) -> None:
    first = random_rows(tmp_path / "first.arrow", TINY, 20, 32)
    second = random_rows(tmp_path / "second.arrow", TINY, 20, 32)
    assert first.lengths.max() <= 32
    assert len(set(first.lengths.tolist())) > 5
    for left, right in zip(first.dataset, second.dataset, strict=True):
        assert (left["input_ids"][0] == right["input_ids"][0]).all()
    assert 0 < first.facts.trained_tokens < first.facts.tokens


def test_packing_leaks_nothing_from_one_record_into_another(tmp_path: Path) -> None:
    differences = packed_logits(TOY, torch.float32, tmp_path)
    assert differences.packed < 1e-5 < 1e-3 < differences.without_positions


def test_a_pretended_shortage_ends_in_smaller_micro_batches_and_all_steps(tmp_path: Path) -> None:
    recovery = recover_from_shortage(too_large(TOY), tmp_path)
    assert recovery.is_pretended
    assert recovery.micro_batch_before == 16
    assert recovery.micro_batch_after in (1, 2, 4)
    assert recovery.steps == recovery.planned_steps == 3


def test_comparing_adapters_sees_the_smallest_difference(tmp_path: Path) -> None:
    weights = {"a": torch.zeros(3), "b": torch.ones(2)}
    save_file(weights, tmp_path / "left")
    save_file({**weights, "b": torch.tensor([1.0, 1.5])}, tmp_path / "right")
    left, right = Ending(1, tmp_path / "left"), Ending(1, tmp_path / "right")
    assert compare(left, left).is_equal
    assert not compare(left, right).is_equal
    assert compare(left, right).max_difference == 0.5


def test_a_contender_without_enough_memory_is_shown_as_such() -> None:
    resumed: dict[str, Any] = {"is_equal": False, "max_difference": 1e-6}
    results = {
        "device": "a card",
        "torch": "2",
        "peak_tflops": 165.2,
        "peak_source": "data sheet",
        "memory_cap_gb": 24.0,
        "speed": {
            "qwen3-8b": {
                "ours": {"tokens_per_second": 1234.5, "mfu": 0.456, "peak_gb": 21.3},
                "TRL defaults": {"out_of_memory": True},
            }
        },
        "packed_logits": {"bfloat16": {"packed": 0.01, "without_positions": 3.0, "largest_logit": 4.0}},
        "resume": {"default": {"steps": 8, "resumed": resumed, "repeated": resumed}},
        "out_of_memory": {
            "micro_batch_before": 64,
            "micro_batch_after": 8,
            "steps": 3,
            "planned_steps": 3,
            "loss": 2.0,
            "peak_bytes": 20 * 10**9,
            "is_pretended": False,
        },
    }
    console = Console(width=200, record=True, file=io.StringIO())
    for table in to_tables(results):
        console.print(table)
    text = console.export_text()
    assert "1,234" in text and "45.6%" in text and "21.3" in text
    assert "out of memory" in text
    assert "real: micro-batch 64 → 8, 3 of 3 steps done, loss 2.000, peak 20.0 GB" in text
    assert "differs: largest difference 1e-06" in text
