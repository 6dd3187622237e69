"""The base model with its adapter: begun, continued, and asked."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import cli
from chat_template import ChatTemplate, Message
from config import Config, load_config
from errors import ConfigError, EnvironmentNotReady, IntegrityError, UsageError
from evaluation.examination import Examiner
from evaluation.graders import GraderSpec
from evaluation.items import Item
from tests.conftest import Workshop
from training.adapter import adapter_weights
from training.model import (
    Learner,
    choose_precision,
    hash_tokenizer,
    load_base,
    load_generator,
    load_learner,
    set_threads,
    trainable_parameters,
)
from training.versions import Version, VersionStore

IDS = torch.tensor([[5, 9, 20, 31, 7]])
EXACT = GraderSpec(name="exact")
Records = Callable[..., list[dict[str, Any]]]


def config_of(tmp_path: Path, *overrides: str) -> Config:
    return load_config(tmp_path, ["model.precision=float32", *overrides])


@pytest.fixture
def version(workshop: Any, make_chats: Records) -> Version:
    """A first version of the tiny model, promoted."""
    outcome, _ = workshop.carry_out(workshop.job(make_chats(24), "train.lora_r=4", "train.lora_alpha=12"))
    return VersionStore(workshop.paths).promote(outcome.version, "promoted by the test")


def logits(model: Any) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(input_ids=IDS).logits.float()  # type: ignore[no-any-return]


@pytest.mark.config_key("train.lora_r", "train.lora_alpha", "train.lora_dropout", "train.lora_target_modules")
def test_a_new_adapter_is_as_configured_and_changes_nothing_yet(tiny_model: Path, tmp_path: Path) -> None:
    config = config_of(tmp_path)
    learner = load_learner(tiny_model, config, None)
    torch.testing.assert_close(logits(learner.model), logits(load_base(tiny_model, config.model, "float32")))
    modules = {name.split(".")[-4] for name in adapter_weights(learner.model)}
    assert modules == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    settings = ("train.lora_r=2", "train.lora_alpha=5", "train.lora_dropout=0.25")
    chosen = config_of(tmp_path, *settings, "train.lora_target_modules=[q_proj]")
    small = load_learner(tiny_model, chosen, None)
    adapter = small.model.peft_config["default"]
    assert (adapter.r, adapter.lora_alpha, adapter.lora_dropout) == (2, 5, 0.25)
    assert trainable_parameters(small.model) == 2 * 2 * (32 + 32)


def test_only_the_adapter_is_trained_and_in_float32(tiny_model: Path, tmp_path: Path) -> None:
    learner = load_learner(tiny_model, config_of(tmp_path, "model.precision=bfloat16"), None)
    trained = {
        name: weight.dtype for name, weight in learner.model.named_parameters() if weight.requires_grad
    }
    assert trained and all("lora_" in name for name in trained)
    assert set(trained.values()) == {torch.float32}
    assert learner.model.dtype == torch.bfloat16


def test_a_continued_adapter_keeps_its_weights_and_shape_and_says_so(
    version: Version, tiny_model: Path, tmp_path: Path
) -> None:
    learner = load_learner(tiny_model, config_of(tmp_path, "train.lora_dropout=0.5"), version)
    adapter = learner.model.peft_config["default"]
    assert (adapter.r, adapter.lora_alpha, adapter.lora_dropout) == (4, 12, 0.5)
    assert learner.notes == [
        "v0001 has lora_r 4, which stays; train.lora_r 16 is for new adapters",
        "v0001 has lora_alpha 12, which stays; train.lora_alpha 32 is for new adapters",
    ]
    weights = adapter_weights(learner.model)
    assert any(weight.abs().max() > 0 for name, weight in weights.items() if "lora_B" in name)
    assert list(learner.model.peft_config) == ["default"]


def test_a_version_of_other_base_weights_is_not_continued(
    version: Version, tiny_model: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other-base"
    other.mkdir()
    for path in tiny_model.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    with pytest.raises(IntegrityError, match="was trained on base weights"):
        load_learner(other, config_of(tmp_path), version)


@pytest.mark.config_key("model.precision")
def test_the_precision_is_the_configured_one_or_the_faster(tiny_model: Path, tmp_path: Path) -> None:
    for precision in ("float32", "bfloat16"):
        config = config_of(tmp_path, f"model.precision={precision}")
        learner = load_learner(tiny_model, config, None)
        assert learner.precision == precision
        assert learner.model.dtype == getattr(torch, precision)
    assert choose_precision(config_of(tmp_path, "model.precision=auto").model) in ("float32", "bfloat16")


def test_a_run_that_goes_on_keeps_its_precision(tiny_model: Path, tmp_path: Path) -> None:
    learner = load_learner(tiny_model, config_of(tmp_path), None, precision="bfloat16")
    assert learner.precision == "bfloat16"


@pytest.mark.config_key("model.attn_implementation")
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_attention_kernel_is_the_configured_one(attention: str, tiny_model: Path, tmp_path: Path) -> None:
    config = config_of(tmp_path, f"model.attn_implementation={attention}")
    model = load_base(tiny_model, config.model, "float32")
    assert model.config._attn_implementation == attention


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine can do it")
@pytest.mark.config_key("model.load_in_4bit")
def test_four_bits_wait_for_a_gpu(tiny_model: Path, tmp_path: Path) -> None:
    config = config_of(tmp_path, "model.load_in_4bit=true")
    with pytest.raises(EnvironmentNotReady, match=r"model\.load_in_4bit: found no CUDA device"):
        load_base(tiny_model, config.model, "bfloat16")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine can do it")
def test_a_kernel_this_machine_does_not_have_is_a_config_error(tiny_model: Path, tmp_path: Path) -> None:
    config = config_of(tmp_path, "model.attn_implementation=flash_attention_2")
    with pytest.raises(ConfigError, match="flash"):
        load_base(tiny_model, config.model, "float32")


def test_layers_that_do_not_exist_are_a_config_error(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.lora_target_modules"):
        load_learner(tiny_model, config_of(tmp_path, "train.lora_target_modules=[nowhere]"), None)


@pytest.mark.config_key("train.threads")
def test_torch_gets_as_many_threads_as_configured(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        set_threads(config_of(tmp_path, "train.threads=1").train)
        assert torch.get_num_threads() == 1
        set_threads(config_of(tmp_path, "train.threads=2").train)
        assert torch.get_num_threads() == 2
        set_threads(config_of(tmp_path, "train.threads=0").train)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.config_key("model.chat_template_kwargs")
def test_the_hash_of_the_tokenizer_follows_all_that_decides_tokens(tiny_model: Path, tmp_path: Path) -> None:
    plain = config_of(tmp_path).model
    thinking = config_of(tmp_path, "model.chat_template_kwargs={enable_thinking: false}").model
    assert hash_tokenizer(tiny_model, plain) == hash_tokenizer(tiny_model, plain)
    assert hash_tokenizer(tiny_model, plain) != hash_tokenizer(tiny_model, thinking)


@pytest.mark.config_key("model.base")
def test_the_base_a_version_and_the_current_one_can_be_asked(
    version: Version, workshop: Any, tiny_model: Path
) -> None:
    settings = [f"model.base={tiny_model}", "model.precision=float32", "evaluation.max_new_tokens=8"]
    config = load_config(workshop.paths.base, settings)
    prompt = [[{"role": "user", "content": "red"}]]
    answers = {
        which: load_generator(workshop.paths, config, which).generate(prompt)[0].text
        for which in ("base", "current", "v0001", "1")
    }
    assert answers["current"] == answers["v0001"] == answers["1"] != answers["base"]
    with pytest.raises(UsageError, match="v0009"):
        load_generator(workshop.paths, config, "v0009")


def test_a_learner_tells_which_base_it_stands_on(tiny_model: Path, tmp_path: Path) -> None:
    learner = load_learner(tiny_model, config_of(tmp_path), None)
    assert isinstance(learner, Learner)
    assert learner.base == tiny_model
    assert len(learner.base_sha256) == 64


QUESTIONS = [
    "red",
    "what colour is the rain",
    "the cat sat on the warm mat and watched: blue",
    "grey or green",
]


# PEFT reads an attribute that transformers deprecates; `training.model` silences it where we load.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("batch_size", [1, 4])
def test_answers_are_those_of_plain_transformers_and_peft_token_for_token(
    batch_size: int, learned: Workshop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    version = VersionStore(learned.paths).get("current")
    tokenizer = AutoTokenizer.from_pretrained(version.folder)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(learned.model), version.folder)
    model.eval()
    conversations: list[list[Message]] = [[{"role": "user", "content": text}] for text in QUESTIONS]
    plain = []
    for messages in conversations:
        asked = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        said = model.generate(**asked, max_new_tokens=24, do_sample=False)
        plain.append(said[0, asked["input_ids"].shape[1] :].tolist())
    words = [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in plain]
    assert len(set(words)) > 1

    settings = (f"model.base={learned.model}", "model.precision=float32", "evaluation.max_new_tokens=24")
    size = f"evaluation.per_device_eval_batch_size={batch_size}"
    config = load_config(learned.paths.base, [*settings, size])
    generator = load_generator(learned.paths, config, "current")
    answers = generator.generate(conversations)
    assert [(answer.text, answer.tokens) for answer in answers] == [
        (text, len(tokens)) for text, tokens in zip(words, plain, strict=True)
    ]
    learner = load_learner(learned.model, config, version)
    template = ChatTemplate.load(learned.model)
    items = [Item(text, talk, text, EXACT) for text, talk in zip(words, conversations, strict=True)]
    found = Examiner(learner.model, template, config.evaluation).examine(items)
    assert [(one.answer, one.answer_tokens) for one in found] == [(one.text, one.tokens) for one in answers]
    assert all(one.correct for one in found)
    with torch.no_grad():
        asked = tokenizer.apply_chat_template(items[1].conversation, return_tensors="pt", return_dict=True)[
            "input_ids"
        ]
        log_probs = model(asked).logits[0, :-1].log_softmax(-1).gather(1, asked[0, 1:, None])[:, 0]
    (start, end), *_ = template.encode_messages(items[1].conversation).spans
    assert found[1].loss_sum == pytest.approx(-float(log_probs[start - 1 : end - 1].sum()), rel=1e-4)

    options = [word for setting in settings for word in ("--set", setting)]
    words_typed = [
        "trainbox",
        "generate",
        "--base",
        str(learned.paths.base),
        "--prompt",
        QUESTIONS[0],
        *options,
    ]
    monkeypatch.setattr(sys, "argv", words_typed)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert (ended.value.code, capsys.readouterr().out) == (0, f"{words[0]}\n")
