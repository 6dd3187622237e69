"""The base that answers, its place, and the one that comes next."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
import torch

import training.model
from config import load_config
from serving import adapters
from serving.adapters import AdaptedModel


@pytest.fixture
def model(tmp_path: Path, tiny_model: Path) -> AdaptedModel:
    settings = ("model.precision=float32", "serving.during_training=cpu")
    return AdaptedModel(load_config(tmp_path, [f"model.base={tiny_model}", *settings]))


@pytest.fixture
def other(tmp_path: Path, tiny_model: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "other"))


def test_what_is_to_answer_on_the_cpu_never_touches_the_gpu(
    model: AdaptedModel, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device without memory stands in for the GPU: what once was there cannot come back."""
    for module in (training.model, adapters):
        monkeypatch.setattr(module, "device", lambda: torch.device("meta"))
    model.settle(tiny_model, "cpu")
    assert model.device == "cpu"
    assert model.model(input_ids=torch.tensor([[1, 2]])).logits.isfinite().all()
    assert model.is_at(tiny_model, "cpu") and not model.is_at(tiny_model, "accelerator")


def test_the_base_that_comes_next_is_loaded_once_and_beside(
    model: AdaptedModel, tiny_model: Path, other: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert model.device is None
    model.settle(tiny_model, "accelerator")
    model.fetch(other)
    assert model.base == tiny_model
    model.settle(other, "accelerator")
    assert model.base == other
    assert [str(other) in line for line in caplog.messages if line.startswith("Loaded")] == [False, True]


def test_a_base_that_memory_does_not_hold_beside_the_other_is_loaded_in_its_place(
    model: AdaptedModel,
    tiny_model: Path,
    other: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model.settle(tiny_model, "accelerator")
    with monkeypatch.context() as patched:
        patched.setattr(adapters, "_weights_bytes", lambda base: 2**60)
        model.fetch(other)
    assert "requests will wait for it" in caplog.text
    model.settle(other, "accelerator")
    assert model.base == other


@pytest.mark.parametrize("trouble", [RuntimeError("can't allocate memory"), MemoryError()])
def test_what_keeps_the_next_base_from_being_loaded_is_told_and_tried_again(
    model: AdaptedModel,
    tiny_model: Path,
    other: Path,
    trouble: Exception,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*arguments: object) -> None:
        raise trouble

    model.settle(tiny_model, "accelerator")
    with monkeypatch.context() as patched:
        patched.setattr(adapters, "load_base", fail)
        model.fetch(other)
    assert "will try again when it is asked for" in caplog.text
    model.settle(other, "accelerator")
    assert model.base == other
