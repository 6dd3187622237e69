"""The base model with the adapter that is trained, or asked, on it."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson
import torch
import transformers
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import durable
from chat_template import ChatTemplate
from config import Config, ModelConfig, Paths, TrainConfig
from errors import ConfigError, EnvironmentNotReady, IntegrityError
from evaluation.generation import Generator
from training.base_model import base_sha256
from training.full_models import base_under
from training.versions import Version, VersionStore

logger = logging.getLogger(__name__)

Precision = Literal["float32", "bfloat16"]
PROBE_SECONDS = 0.25
"""Time given to each precision when `model.precision` is auto."""
_PROBE_SHAPE = (512, 576, 1536)


@dataclass(frozen=True)
class Learner:
    """A model whose adapter, and nothing else, is trained."""

    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    base: Path
    base_sha256: str
    precision: Precision
    notes: list[str]
    """What a person should know about how the configuration was applied."""


def load_learner(
    base: Path, config: Config, parent: Version | None, precision: Precision | None = None
) -> Learner:
    """Load `base` with the adapter of `parent`, or with a new one that changes nothing yet.

    A continued adapter keeps its rank, scale and layers; its dropout is the configured one. `precision`
    overrides the configured one, for a run that goes on. Raises IntegrityError when `parent` was trained
    on other base weights.
    """
    found = base_sha256(base)
    if parent is not None and parent.facts.base_sha256 != found:
        raise IntegrityError(
            f"{parent.name} was trained on base weights {parent.facts.base_sha256[:12]}…, found "
            f"{found[:12]}… in {base}; set model.base to {parent.facts.base_model!r}, or roll back to a "
            "version of this base"
        )
    precision = precision or choose_precision(config.model)
    model = load_base(base, config.model, precision)
    notes: list[str] = []
    # The weights of a new adapter are drawn at random.
    transformers.set_seed(config.train.seed)
    with known_warnings():
        if parent is None:
            adapted = new_adapter(model, config.train)
        else:
            adapter = PeftConfig.from_pretrained(str(parent.folder))
            notes = _differences(adapter, config.train, parent.name)
            adapter.lora_dropout = config.train.lora_dropout
            adapted = PeftModel.from_pretrained(model, str(parent.folder), is_trainable=True, config=adapter)
    tokenizer = AutoTokenizer.from_pretrained(base)
    return Learner(adapted, tokenizer, base, found, precision, notes)


def load_generator(paths: Paths, config: Config, which: str) -> Generator:
    """Load a version (``current``, ``v0003``, a number) or the ``base`` model, ready to answer."""
    _, base = _version_and_base(paths, config, which)
    template = ChatTemplate.load(base, config.model.chat_template_kwargs)
    return Generator(load_answering(paths, config, which), template, config.evaluation)


def load_answering(paths: Paths, config: Config, which: str) -> Any:
    """Load the weights of a version or of the ``base`` model, as `load_generator` does, to ask them."""
    version, base = _version_and_base(paths, config, which)
    if version is not None and version.facts.base_sha256 != base_sha256(base):
        raise IntegrityError(
            f"{version.name} was trained on other base weights than those in {base}; set model.base to "
            f"{version.facts.base_model!r}"
        )
    set_threads(config.train)
    model = load_base(base, config.model, choose_precision(config.model))
    if version is None:
        return model
    with known_warnings():
        return PeftModel.from_pretrained(model, str(version.folder))


def load_tokenizer(paths: Paths, config: Config, which: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a version's base, or of the ``base`` model, for programs that want their own."""
    return AutoTokenizer.from_pretrained(_version_and_base(paths, config, which)[1])


def _version_and_base(paths: Paths, config: Config, which: str) -> tuple[Version | None, Path]:
    version = None if which == "base" else VersionStore(paths).get(which)
    return version, base_under(paths, config.model, None if version is None else version.facts)


def load_base(
    base: Path, config: ModelConfig, precision: Precision, where: torch.device | None = None
) -> PreTrainedModel:
    """Load the base weights onto the device that trains, or `where`, by way of no other.

    Raises ConfigError when a setting does not fit the base.
    """
    transformers.utils.logging.disable_progress_bar()
    settings: dict[str, Any] = {
        "dtype": getattr(torch, precision),
        "attn_implementation": config.attn_implementation,
        "local_files_only": True,
        # Weights are data: no pickles, and no code that lies beside them.
        "use_safetensors": True,
        "trust_remote_code": False,
    }
    if config.load_in_4bit:
        settings |= {"quantization_config": _four_bits(), "device_map": {"": 0}}
    try:
        model = AutoModelForCausalLM.from_pretrained(base, **settings)
    except (ImportError, ValueError, SafetensorError) as error:
        raise ConfigError(f"{base} cannot be loaded with {config!r}: {error}") from error
    return model if config.load_in_4bit else model.to(where or device())


def device() -> torch.device:
    """Return the device that trains: the first GPU, or the CPU where there is none."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def device_name() -> str:
    """Return which kind of device trains, with the memory of a GPU; alike machines have the same name."""
    if not torch.cuda.is_available():
        return "cpu"
    facts = torch.cuda.get_device_properties(0)
    return f"{facts.name} {facts.total_memory}"


def set_threads(config: TrainConfig) -> None:
    """Give torch the configured number of CPU threads."""
    if config.threads:
        torch.set_num_threads(config.threads)


def choose_precision(config: ModelConfig) -> Precision:
    """Return the configured precision, or the faster one on this machine."""
    if config.precision != "auto":
        return config.precision
    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    rates = {dtype: _multiplications(dtype) for dtype in (torch.float32, torch.bfloat16)}
    precision: Precision = "bfloat16" if rates[torch.bfloat16] > rates[torch.float32] else "float32"
    logger.info(
        "Chose %s: %.0f GFLOP/s in bfloat16, %.0f in float32",
        *(precision, rates[torch.bfloat16] / 1e9, rates[torch.float32] / 1e9),
    )
    return precision


def _multiplications(dtype: torch.dtype) -> float:
    """Measure the floating-point operations a second of a matrix product of a small model's size."""
    rows, inner, columns = _PROBE_SHAPE
    left, right = torch.ones(rows, inner, dtype=dtype), torch.ones(inner, columns, dtype=dtype)
    left @ right
    done, start = 0, time.monotonic()
    while (elapsed := time.monotonic() - start) < PROBE_SECONDS or not done:
        left @ right
        done += 1
    return done * 2 * rows * inner * columns / elapsed if elapsed else 0.0


def hash_tokenizer(base: Path, config: ModelConfig) -> str:
    """Return one sha256 over all that decides how text becomes tokens."""
    digest = hashlib.sha256(orjson.dumps(config.chat_template_kwargs, option=orjson.OPT_SORT_KEYS))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        if (base / name).is_file():
            digest.update(f"{name} {durable.sha256_file(base / name)}\n".encode())
    return digest.hexdigest()


def trainable_parameters(model: PeftModel) -> int:
    """Count the numbers that training changes."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def new_adapter(model: PreTrainedModel, config: TrainConfig) -> PeftModel:
    """Put the configured adapter on a base; it changes nothing yet."""
    adapter = LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=config.lora_target_modules,
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, adapter)
    except ValueError as error:
        raise ConfigError(f"train.lora_target_modules: {error}") from error


def _differences(adapter: PeftConfig, config: TrainConfig, name: str) -> list[str]:
    """Say where an adapter that is continued differs from what a new one would be."""
    pairs = {"lora_r": (adapter.r, config.lora_r), "lora_alpha": (adapter.lora_alpha, config.lora_alpha)}
    return [
        f"{name} has {key} {kept}, which stays; train.{key} {wanted} is for new adapters"
        for key, (kept, wanted) in pairs.items()
        if kept != wanted
    ]


def _four_bits() -> transformers.BitsAndBytesConfig:
    if not torch.cuda.is_available():
        raise EnvironmentNotReady(
            "model.load_in_4bit: found no CUDA device, expected one; set it to false, or wait for the GPU"
        )
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


@contextlib.contextmanager
def known_warnings() -> Iterator[None]:
    """Silence what PEFT sets off by reading a deprecated attribute of transformers."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield
