"""Versions of the tiny model, published without training: an adapter that changes its answers."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from config import Paths, dump_config, load_config
from serving.catalogue import Catalogue
from training.base_model import base_sha256
from training.model import known_warnings
from training.versions import HeldOutResult, RecordCounts, Version, VersionFacts, VersionStore

SETTINGS = ("model.precision=float32", "train.threads=1", "serving.inference_port=0")


def publish(paths: Paths, base: Path, seed: int, *, promote: bool = True) -> Version:
    """Publish a version whose adapter was drawn at random, and make it current."""
    store = VersionStore(paths)
    staging = store.stage()
    with known_warnings():
        model = AutoModelForCausalLM.from_pretrained(base)
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
        chance = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_" in name:
                    weight.copy_(torch.randn(weight.shape, generator=chance) * 0.3)
        model.save_pretrained(staging)
    number = len(store.list()) + 1
    version = store.publish(
        staging,
        VersionFacts(
            parent=None,
            job_id=f"{number:06d}-{seed:08x}",
            input_name="colours.jsonl",
            input_sha256="0" * 64,
            base_model=str(base),
            base_sha256=base_sha256(base),
            created_at=datetime.now(UTC),
            config={},
            records=RecordCounts(train=1, held_out=0),
            steps=1,
            epochs=1,
            tokens=1,
            train_loss=None,
            held_out=HeldOutResult(records=0),
            decision="promote",
            decision_reason="a test wants it",
        ),
    )
    return store.promote(version, "a test wants it") if promote else version


def make_base(folder: Path, model: Path, *settings: str) -> Paths:
    """Make a base folder whose configuration names the tiny model."""
    paths = Paths(folder)
    paths.create()
    paths.config_file.write_text(
        dump_config(load_config(folder, [f"model.base={model}", *SETTINGS, *settings]))
    )
    return paths


def catalogue(paths: Paths) -> Catalogue:
    return Catalogue(paths, load_config(paths.base).model)
