"""The presets load, say why they differ from the defaults, and train a model of their architecture."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from chat_template import ChatTemplate
from config import Config, dump_config, load_config
from errors import RecordRefused

PRESETS = sorted((Path(__file__).parent.parent / "presets").glob("*.yaml"))
QUESTION = [{"role": "user", "content": "which colour?"}]
CONVERSATION = [*QUESTION, {"role": "assistant", "content": "the colour is grey"}]

every_preset = pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.stem)


def load_preset(preset: Path, base: Path, *overrides: str) -> Config:
    """Use a preset as a person would: copied to config.yaml of a base folder."""
    shutil.copyfile(preset, base / "config.yaml")
    return load_config(base, overrides)


@pytest.fixture(scope="module")
def tiny_qwen3(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two random Qwen3 layers (grouped queries, norms on queries and keys) with Qwen3's own chat template."""
    import trl
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM, set_seed

    folder = tmp_path_factory.mktemp("tiny-qwen3")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    template = Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja"
    tokenizer.chat_template = template.read_text(encoding="utf-8")
    tokenizer.save_pretrained(folder)
    set_seed(0)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            max_position_embeddings=512,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.save_pretrained(folder)
    return folder


def carry_out(
    workshop: Any, records: list[dict[str, Any]], preset: Path, model: Path, *overrides: str
) -> tuple[Any, list[dict[str, Any]]]:
    """Train `records` by the worker's own code under a preset; return the outcome and what was reported."""
    job_id = workshop.job(records)
    config = load_preset(preset, workshop.paths.base, f"model.base={model}", "train.threads=1", *overrides)
    workshop.folder(job_id).config_file.write_text(dump_config(config))
    result: tuple[Any, list[dict[str, Any]]] = workshop.carry_out(job_id)
    return result


@every_preset
def test_a_preset_holds_only_what_differs_from_the_defaults(preset: Path, tmp_path: Path) -> None:
    loaded = load_preset(preset, tmp_path).model_dump()
    defaults = Config().model_dump()
    document = yaml.safe_load(preset.read_text(encoding="utf-8"))
    for section, keys in document.items():
        for key, value in keys.items():
            assert loaded[section][key] == value
            assert value != defaults[section][key], f"{section}.{key} repeats the default"
    assert loaded["model"]["base"].startswith("Qwen/Qwen3-")


@every_preset
def test_a_preset_gives_the_reason_for_each_key_and_calls_its_memory_an_estimate(preset: Path) -> None:
    text = preset.read_text(encoding="utf-8")
    keys = [line for line in text.splitlines() if re.match(r"  \w+:", line)]
    assert keys
    assert [line for line in keys if "  # " not in line] == []
    assert "An estimate, not run on a GPU" in text


@every_preset
def test_a_step_of_every_preset_has_sixteen_records(preset: Path, tmp_path: Path) -> None:
    train = load_preset(preset, tmp_path).train
    assert train.per_device_train_batch_size * train.gradient_accumulation_steps == 16


@every_preset
def test_a_preset_asks_with_the_markup_that_it_trains(preset: Path, tiny_qwen3: Path, tmp_path: Path) -> None:
    kwargs = load_preset(preset, tmp_path).model.chat_template_kwargs
    template = ChatTemplate.load(tiny_qwen3, kwargs)
    trained, asked = template.encode_messages(CONVERSATION), template.encode_prompt(QUESTION)
    assert trained.input_ids[: len(asked)] == asked
    assert trained.spans[0][0] == len(asked)


def test_without_the_key_of_the_presets_the_template_is_refused_with_the_remedy(tiny_qwen3: Path) -> None:
    with pytest.raises(RecordRefused, match="enable_thinking: false"):
        ChatTemplate.load(tiny_qwen3).encode_messages(CONVERSATION)


@every_preset
def test_a_tiny_model_of_the_architecture_learns_under_a_preset(
    preset: Path, tiny_qwen3: Path, workshop: Any, make_chats: Callable[..., list[dict[str, Any]]]
) -> None:
    # Random weights of this size need larger steps; 4 bits need a GPU.
    overrides = (
        *("model.load_in_4bit=false", "train.learning_rate=1e-2", "train.num_train_epochs=4"),
        "data.held_out_fraction=0.1",
    )
    outcome, events = carry_out(workshop, make_chats(80), preset, tiny_qwen3, *overrides)
    assert outcome.outcome == "completed", outcome
    losses = [event["loss"] for event in events if event["event"] == "step"]
    assert len(losses) == 4 * 5
    assert max(losses[-5:]) < min(losses[:5])
    assert any(event["event"] == "evaluated" for event in events)


def test_four_bits_without_a_gpu_wait_for_one_and_name_the_key_to_change(
    tiny_qwen3: Path,
    workshop: Any,
    make_chats: Callable[..., list[dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (preset,) = (path for path in PRESETS if path.stem.endswith("8b"))
    outcome, _ = carry_out(workshop, make_chats(20), preset, tiny_qwen3)
    assert outcome.outcome == "waiting"
    assert "model.load_in_4bit" in outcome.message
    assert "set it to false" in outcome.message
