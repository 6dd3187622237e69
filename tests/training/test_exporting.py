"""An exported version answers as the version does, wherever it is loaded."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import durable
from config import Config, Paths, load_config
from errors import IntegrityError, UsageError
from training.base_model import base_sha256, prepare_base
from training.exporting import Exporter, ExportFormat
from training.full_models import StoredPrecision
from training.gguf_file import obstacle
from training.merging import TOLERANCE, copy_files, load_plainly, write_new_adapter
from training.publication import TOKENIZER_FILES
from training.versions import Version, VersionStore

IDS = torch.tensor([[5, 9, 20, 31, 7]])


def config_of(workshop: Any, *overrides: str) -> Config:
    settings = (f"model.base={workshop.model}", "model.precision=float32", "train.threads=1", *overrides)
    return load_config(workshop.paths.base, settings)


@pytest.fixture
def version(learned: Any) -> Version:
    return VersionStore(learned.paths).get("v0001")


@pytest.fixture
def exporter(learned: Any) -> Exporter:
    return Exporter(learned.paths, config_of(learned))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits.float()  # type: ignore[no-any-return]


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_gguf_file_answers_as_the_version(
    precision: StoredPrecision, version: Version, exporter: Exporter, tmp_path: Path
) -> None:
    export = exporter.export(version, "gguf", tmp_path / "out", precision)
    assert (export.format, export.obstacle, export.likeness.is_close) == ("gguf", None, True)
    assert export.likeness.prompts == 10
    # Rounded weights may tip an answer over that hung in the balance.
    assert export.likeness.same_answers >= (10 if precision == "float32" else 7)
    durable.verify_folder(export.folder)
    assert [path.name for path in export.folder.glob("*.gguf")] == [f"v0001-{precision}.gguf"]


def test_a_gguf_file_carries_the_tokens_the_merges_and_the_chat_template(
    version: Version, exporter: Exporter, learned: Any, tmp_path: Path
) -> None:
    export = exporter.export(version, "gguf", tmp_path / "out")
    reader = gguf.GGUFReader(export.folder / "v0001-float32.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tokenizer = AutoTokenizer.from_pretrained(learned.model)
    assert fields["tokenizer.ggml.tokens"] == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert fields["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id
    assert fields["tokenizer.chat_template"] == tokenizer.chat_template
    assert fields["tokenizer.ggml.token_type"][0] == gguf.TokenType.CONTROL
    assert fields["tokenizer.ggml.add_bos_token"] is False
    assert "output.weight" not in {tensor.name for tensor in reader.tensors}
    text = "the printer on the 2nd floor"
    again = AutoTokenizer.from_pretrained(export.folder, gguf_file="v0001-float32.gguf")
    assert again(text, add_special_tokens=False).input_ids == tokenizer(text).input_ids


def test_a_merged_model_is_loaded_by_plain_transformers_without_the_base(
    version: Version, exporter: Exporter, learned: Any, tmp_path: Path
) -> None:
    export = exporter.export(version, "merged", tmp_path / "out")
    merged = AutoModelForCausalLM.from_pretrained(export.folder, dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(learned.model, dtype=torch.float32)
    assert not logits(merged).allclose(logits(base), atol=0.1)
    assert export.likeness.is_close
    assert AutoTokenizer.from_pretrained(export.folder).chat_template


# PEFT reads an attribute that transformers deprecates; `training.model` silences it where we load.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_peft_folder_is_clean_names_its_base_and_is_loaded_by_plain_peft(
    version: Version, exporter: Exporter, learned: Any, tmp_path: Path
) -> None:
    export = exporter.export(version, "peft", tmp_path / "out")
    names = {path.name for path in export.folder.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "README.md"} < names
    assert "training_state" not in names
    named = durable.read_json(export.folder / "adapter_config.json")["base_model_name_or_path"]
    assert named == str(learned.model)
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(named), export.folder)
    found = durable.read_json(export.folder / "manifest.json")
    assert (found["version"], found["format"], found["likeness"]["largest_logit_difference"]) == (
        *("v0001", "peft"),
        0.0,
    )
    merged = exporter.export(version, "merged", tmp_path / "merged")
    other = AutoModelForCausalLM.from_pretrained(merged.folder, dtype=torch.float32)
    torch.testing.assert_close(logits(loaded), logits(other), atol=1e-4, rtol=0)


def test_an_architecture_and_a_tokenizer_that_cannot_be_gguf_here_are_named(
    learned: Any, tmp_path: Path
) -> None:
    model = load_plainly(learned.model)
    assert obstacle(model, learned.model) is None
    tokenizer = durable.read_json(learned.model / "tokenizer.json")
    durable.write_json(tmp_path / "tokenizer.json", tokenizer | {"pre_tokenizer": {"type": "Whitespace"}})
    assert "cuts text" in str(obstacle(model, tmp_path))
    model.config.rope_parameters["rope_type"] = "yarn"
    assert "rotary embedding is scaled (yarn)" in str(obstacle(model, learned.model))
    model.config.attention_bias = True
    assert "not a plain Llama" in str(obstacle(model, learned.model))


def test_what_cannot_be_gguf_here_is_written_merged_with_the_command_that_converts_it(
    version: Version, learned: Any, tmp_path: Path
) -> None:
    settings = durable.read_json(learned.model / "config.json")
    other = tmp_path / "base"
    shutil.copytree(learned.model, other)
    # Without scaling in effect, so that the version is the same; but it is no longer the plain kind.
    scaled = settings | {"rope_parameters": {"rope_type": "linear", "factor": 1.0, "rope_theta": 10000.0}}
    durable.write_json(other / "config.json", scaled)
    exporter = Exporter(learned.paths, config_of(learned, f"model.base={other}"))
    export = exporter.export(version, "gguf", tmp_path / "out")
    assert (export.format, export.likeness.is_close) == ("merged", True)
    assert "rotary embedding is scaled" in str(export.obstacle)
    assert (
        export.command
        == f"python convert_hf_to_gguf.py {tmp_path / 'out'} --outfile {tmp_path / 'out'}/model.gguf"
    )
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize("form", ["peft", "merged", "gguf"])
def test_what_answers_otherwise_is_not_written(
    form: ExportFormat, version: Version, exporter: Exporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TOLERANCE, "float32", -1.0)
    with pytest.raises(IntegrityError, match="answers otherwise"):
        exporter.export(version, form, tmp_path / "out")
    assert list(tmp_path.glob("*out*")) == []


def test_a_folder_that_is_taken_is_left_alone(version: Version, exporter: Exporter, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="name another one"):
        exporter.export(version, "peft", tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_a_damaged_version_is_not_exported(
    version: Version, exporter: Exporter, tmp_path: Path, flip_byte: Callable[..., None]
) -> None:
    flip_byte(version.folder / "adapter_model.safetensors", 2000)
    with pytest.raises(IntegrityError, match=r"adapter_model\.safetensors"):
        exporter.export(version, "peft", tmp_path / "out")


@pytest.mark.real_model
def test_the_embedded_model_with_an_adapter_answers_the_same_as_a_gguf_file(
    make_version: Callable[..., Version], tmp_path: Path
) -> None:
    """Its grouped-query attention, its tied embeddings, its 49,152 tokens; three of its layers are enough."""
    whole = prepare_base(Paths(Path(__file__).parents[2]))
    base, staging = tmp_path / "base", tmp_path / "adapter"
    AutoModelForCausalLM.from_pretrained(whole, num_hidden_layers=3).save_pretrained(base)
    copy_files(whole, base, TOKENIZER_FILES)
    config = load_config(tmp_path, [f"model.base={base}", "train.lora_r=4", "train.threads=1"])
    staging.mkdir()
    write_new_adapter(base, staging, config.train)
    shake(staging / "adapter_model.safetensors")
    version = make_version(staging, base_model=str(base), base_sha256=base_sha256(base))
    export = Exporter(Paths(tmp_path), config).export(version, "gguf", tmp_path / "out")
    assert export.likeness.is_close
    assert export.likeness.same_answers == export.likeness.prompts == 6


def shake(adapter: Path) -> None:
    """Give an adapter that changes nothing weights that change every answer."""
    from safetensors.torch import load_file, save_file

    generator = torch.Generator().manual_seed(1)
    weights = {
        name: weight + 0.02 * torch.randn(weight.shape, generator=generator)
        for name, weight in load_file(adapter).items()
    }
    save_file(weights, adapter, metadata={"format": "pt"})
