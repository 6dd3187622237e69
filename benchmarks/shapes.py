"""Random models and records of known sizes, and the arithmetic that training them takes."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import transformers
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config

from chat_template import IGNORE
from training.dataset import TokenFacts, TokenRows
from training.model import Learner, Precision

SEED = 20_250_101
END_TOKEN_ID = 0
PAD_TOKEN_ID = 1
LORA_RANK = 16
TRAINED_SHARE = 0.4
"""Share of a record that is its answer; the rest is prompt."""
PEAK_TFLOPS = {"RTX 4090": 165.2, "H100": 989.4, "H200": 989.4, "A100": 312.0}
"""Dense bf16 products with float32 sums, by the data sheets; of the SXM module where there are several."""
PROBE_SECONDS = 1.0


@dataclass(frozen=True)
class Shape:
    """The sizes of a Qwen3 model."""

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    is_tied: bool

    @property
    def linear_sizes(self) -> list[tuple[int, int]]:
        """Inputs and outputs of the linear maps of one layer, each of which gets an adapter."""
        queries, keys = self.heads * self.head_size, self.kv_heads * self.head_size
        attention = [(self.hidden, queries), (self.hidden, keys), (self.hidden, keys), (queries, self.hidden)]
        return [*attention, *[(self.hidden, self.intermediate)] * 2, (self.intermediate, self.hidden)]

    @property
    def linear_parameters(self) -> int:
        """Weights of the linear maps of all layers; embeddings and head left out."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.linear_sizes)

    @property
    def adapter_parameters(self) -> int:
        return self.layers * LORA_RANK * sum(inputs + outputs for inputs, outputs in self.linear_sizes)

    def config(self) -> Qwen3Config:
        return Qwen3Config(
            num_hidden_layers=self.layers,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_size,
            vocab_size=self.vocabulary,
            tie_word_embeddings=self.is_tied,
            eos_token_id=END_TOKEN_ID,
            pad_token_id=PAD_TOKEN_ID,
        )


SMALL = Shape("qwen3-0.6b", 28, 1024, 3072, 16, 8, 128, 151_936, is_tied=True)
LARGE = Shape("qwen3-8b", 36, 4096, 12_288, 32, 8, 128, 151_936, is_tied=False)
TINY = Shape("tiny", 2, 32, 64, 4, 2, 8, 256, is_tied=True)


def training_flops(shape: Shape, lengths: Sequence[int], trained_tokens: int) -> float:
    """Return the floating-point operations that one pass over records of `lengths` needs.

    For T tokens of which S are trained: ``4 N T + 6 A T + 4 H S + 6 L Q sum(t^2)``, with N the frozen weights
    of the layers (2 forward, 2 for the gradient of what goes in; their own gradient is not computed), A the
    weights of the adapter (2 forward, 4 backward), H those of the head, and for causal attention L layers of
    Q query values over records of t tokens. What is recomputed to save memory, padding, and the head where
    nothing is trained are no useful work and not counted.
    """
    tokens = sum(lengths)
    attention = 6 * shape.layers * shape.heads * shape.head_size * sum(length**2 for length in lengths)
    head = 4 * shape.vocabulary * shape.hidden * trained_tokens
    return float(
        4 * shape.linear_parameters * tokens + 6 * shape.adapter_parameters * tokens + head + attention
    )


def peak_flops(device: torch.device) -> tuple[float, str]:
    """Return the operations a second that `device` is taken to reach, and where the number is from."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for card, tflops in PEAK_TFLOPS.items():
            if card in name:
                return tflops * 1e12, "data sheet"
    return _measured_flops(device), "measured"


def _measured_flops(device: torch.device) -> float:
    size = 8192 if device.type == "cuda" else 512
    left = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    left @ left
    synchronise(device)
    done, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < PROBE_SECONDS or not done:
        left @ left
        synchronise(device)
        done += 1
    return done * 2 * size**3 / elapsed


def synchronise(device: torch.device) -> None:
    """Wait until `device` has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def random_model(shape: Shape, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Any:
    """Make a model of random weights on `device`; the same on every call on one kind of device."""
    transformers.set_seed(SEED)
    with device:
        make: Any = AutoModelForCausalLM.from_config
        return make(shape.config(), dtype=dtype, attn_implementation="sdpa")


def random_learner(shape: Shape, device: torch.device, precision: Precision = "bfloat16") -> Learner:
    """Make a random model with a new adapter on all linear layers, as a new version would have it."""
    model = random_model(shape, device, getattr(torch, precision))
    adapter = LoraConfig(
        r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    adapted = get_peft_model(model, adapter)
    return Learner(
        model=adapted,
        tokenizer=_tokenizer(),
        base=Path(shape.name),
        base_sha256="",
        precision=precision,
        notes=[],
    )


def _tokenizer() -> PreTrainedTokenizerFast:
    """Make the least that the trainers take for a tokenizer; the records are token ids already."""
    words = {"<|end|>": END_TOKEN_ID, "<|pad|>": PAD_TOKEN_ID}
    make: Any = PreTrainedTokenizerFast
    tokenizer: PreTrainedTokenizerFast = make(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<|end|>")),
        eos_token="<|end|>",
        pad_token="<|pad|>",
    )
    return tokenizer


def random_rows(path: Path, shape: Shape, records: int, longest: int) -> TokenRows:
    """Write records of random tokens to `path` and return them as the trainer reads them.

    Their lengths are log-normal around two fifths of `longest`, as those of chats are.
    """
    draw = np.random.default_rng(SEED)
    drawn = draw.lognormal(math.log(0.4 * longest), 0.5, records)
    lengths = np.clip(drawn, longest // 16 + 2, longest).astype(int)
    rows = [_random_row(draw, shape, number, int(length)) for number, length in enumerate(lengths)]
    sequences = pa.list_(pa.list_(pa.int32()))
    fields = [("line", pa.int64()), ("length", pa.int32()), ("input_ids", sequences), ("labels", sequences)]
    schema = pa.schema(fields)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema))
    tokens = int(lengths.sum())
    trained = sum(label != IGNORE for row in rows for label in row["labels"][0])
    return TokenRows(path, TokenFacts("chat", records, records, tokens, trained, 0, 0))


def _random_row(draw: np.random.Generator, shape: Shape, number: int, length: int) -> dict[str, Any]:
    ids = draw.integers(PAD_TOKEN_ID + 1, shape.vocabulary, length).tolist()
    prompt = length - max(1, int(TRAINED_SHARE * length))
    labels = [IGNORE] * prompt + ids[prompt:]
    return {"line": number + 1, "length": length, "input_ids": [ids], "labels": [labels]}
