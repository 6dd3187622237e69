"""A pickle is a program: none that comes with a checkpoint, a version or a base model is ever run."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

import durable
from config import Config, ModelConfig
from errors import ConfigError, TrainboxError
from training import checkpoints
from training.base_model import prepare_base
from training.model import load_base
from training.optimization import PARAMETER_NAMES, carry_moments

Records = Callable[..., list[dict[str, Any]]]


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._mark),)


def test_the_evil_pickle_of_these_tests_does_what_it_is_for(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Evil(tmp_path / "mark"), protocol=2))
    assert (tmp_path / "mark").is_dir()


def test_no_pickle_in_a_checkpoint_is_run_though_its_seal_is_whole(
    workshop: Any, make_chats: Records, tmp_path: Path
) -> None:
    job_id = workshop.job(make_chats(30), "train.per_device_train_batch_size=2", "train.eval_steps=3")
    outcome, _ = workshop.carry_out(job_id, command="pause", at_step=4)
    assert outcome.outcome == "paused"
    run = workshop.folder(job_id).folder
    saved = checkpoints.newest(checkpoints.list_checkpoints(run))
    assert saved is not None
    mark = tmp_path / "mark"
    names = {path.name for path in saved.folder.iterdir() if path.suffix in (".pt", ".pth", ".bin")}
    assert {"optimizer.pt", "scheduler.pt"} <= names
    shutil.copytree(saved.folder, tmp_path / "whole")
    for name in sorted(names):
        shutil.rmtree(saved.folder)
        shutil.copytree(tmp_path / "whole", saved.folder)
        (saved.folder / name).write_bytes(pickle.dumps(Evil(mark), protocol=2))
        checkpoints.seal(saved.folder, saved.facts)
        outcome, _ = workshop.carry_out(job_id, command="pause", at_step=saved.facts.step + 3)
        assert not mark.exists(), f"{name} was run"
        assert outcome.outcome in ("failed", "paused", "completed")
        if name in ("optimizer.pt", "scheduler.pt"):
            assert outcome.outcome == "failed", name


def test_no_pickle_among_carried_moments_is_run(tmp_path: Path) -> None:
    (tmp_path / PARAMETER_NAMES).write_text('{"names": []}', encoding="utf-8")
    (tmp_path / "optimizer.pt").write_bytes(pickle.dumps(Evil(tmp_path / "mark"), protocol=2))
    with pytest.raises(pickle.UnpicklingError):
        carry_moments(cast(Any, None), [], tmp_path)
    assert not (tmp_path / "mark").exists()


@pytest.fixture
def pickled_base(tiny_model: Path, tmp_path: Path) -> Path:
    """A base model whose weights are a pickle."""
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_model, folder)
    for path in folder.glob("*.safetensors"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(tmp_path / "mark"), protocol=2))
    return folder


def test_a_base_model_of_pickles_is_refused_with_the_remedy(
    workshop: Any, pickled_base: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="save the model as safetensors"):
        prepare_base(workshop.paths, str(pickled_base))
    with pytest.raises((TrainboxError, OSError)):
        load_base(pickled_base, ModelConfig(), "float32")
    assert not (tmp_path / "mark").exists()


def test_code_that_lies_beside_a_base_model_is_never_run(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "coded"
    shutil.copytree(tiny_model, folder)
    document = durable.read_json(folder / "config.json")
    document |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}
    durable.write_json(folder / "config.json", document)
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'mark')!r})\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_base(folder, Config().model, "float32")
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("header_bytes", [2**62, 2**31, 1 << 20])
def test_a_header_of_weights_that_promises_too_much_is_refused(
    tiny_model: Path, tmp_path: Path, header_bytes: int
) -> None:
    folder = tmp_path / "bomb"
    shutil.copytree(tiny_model, folder)
    (folder / "model.safetensors").write_bytes(header_bytes.to_bytes(8, "little") + b"{}")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_base(folder, Config().model, "float32")
