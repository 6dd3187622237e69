"""A model is asked in one way: greedy, batched, bounded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from chat_template import ChatTemplate, Message
from config import EvaluationConfig
from errors import RecordRefused
from evaluation.generation import Generator

QUESTIONS = ["red", "what colour is the rain", "the cat sat on the warm mat", "grey or blue"]


@pytest.fixture(scope="module")
def template(tiny_model: Path) -> ChatTemplate:
    return ChatTemplate.load(tiny_model)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model)


def asked(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def generator_of(model: Any, template: ChatTemplate, **settings: Any) -> Generator:
    return Generator(model, template, EvaluationConfig(**{"max_new_tokens": 12, **settings}))


def says(model: Any, template: ChatTemplate, text: str, prompt: list[Message]) -> Any:
    """Return a model whose next answer to `prompt` is `text`, by bending its logits."""
    said = [*template.tokenizer.encode(text, add_special_tokens=False).ids, template.eos_token_id]
    start = len(template.encode_prompt(prompt))

    def bend(module: Any, arguments: Any, settings: Any, output: Any) -> Any:
        at = settings["past_key_values"].get_seq_length() - start
        output.logits[:, -1] = -100.0
        output.logits[:, -1, said[at]] = 100.0
        return output

    return model.register_forward_hook(bend, with_kwargs=True)


def test_the_whole_answer_comes_back_and_nothing_of_the_prompt(model: Any, template: ChatTemplate) -> None:
    prompt = asked("  the rain, 'quoted' and odd: <|im_end|> \n")
    handle = says(model, template, '{"colour": "grey"}', prompt)
    (answer,) = generator_of(model, template, max_new_tokens=64).generate([prompt])
    handle.remove()
    assert answer.text == '{"colour": "grey"}'
    assert answer.finish_reason == "stop"
    assert answer.prompt_tokens == len(template.encode_prompt(prompt))
    assert answer.tokens == len(template.tokenizer.encode(answer.text, add_special_tokens=False).ids) + 1


@pytest.mark.config_key("evaluation.per_device_eval_batch_size")
def test_the_batch_size_changes_speed_and_not_the_answers(
    model: Any, template: ChatTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    plain = model.generate

    def counted(**settings: Any) -> Any:
        batches.append(len(settings["input_ids"]))
        return plain(**settings)

    monkeypatch.setattr(model, "generate", counted)
    texts = {}
    for size in (1, 3):
        generator = generator_of(model, template, per_device_eval_batch_size=size)
        texts[size] = [answer.text for answer in generator.generate([asked(text) for text in QUESTIONS])]
    assert texts[1] == texts[3]
    assert len(set(texts[1])) > 1
    assert batches == [1, 1, 1, 1, 3, 1]


@pytest.mark.config_key("evaluation.max_new_tokens")
def test_an_answer_is_cut_at_its_longest_length(model: Any, template: ChatTemplate) -> None:
    for limit in (3, 7):
        (answer,) = generator_of(model, template, max_new_tokens=limit).generate([asked("red")])
        assert (answer.tokens, answer.finish_reason) == (limit, "length")


@pytest.mark.config_key("evaluation.max_generation_seconds")
def test_generation_ends_when_its_time_is_up(model: Any, template: ChatTemplate) -> None:
    generator = generator_of(model, template, max_new_tokens=400, max_generation_seconds=1e-6)
    (answer,) = generator.generate([asked("red")])
    assert answer.finish_reason == "time"
    assert answer.tokens == 1


def test_a_conversation_the_template_refuses_raises(model: Any, template: ChatTemplate) -> None:
    with pytest.raises(RecordRefused):
        generator_of(model, template).generate([asked("red")], tools=[[{"name": "look_up"}]])


def test_no_conversations_give_no_answers(model: Any, template: ChatTemplate) -> None:
    assert generator_of(model, template).generate([]) == []


def test_a_model_in_training_is_left_in_training(model: Any, template: ChatTemplate) -> None:
    model.train()
    generator_of(model, template).generate([asked("red")])
    assert model.training
    model.eval()
    generator_of(model, template).generate([asked("red")])
    assert not model.training


def test_sampling_settings_of_the_model_have_no_say(
    model: Any, template: ChatTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.generation_config, "do_sample", True)
    monkeypatch.setattr(model.generation_config, "temperature", 5.0)
    generator = generator_of(model, template)
    first, second = (generator.generate([asked("red")])[0].text for _ in range(2))
    assert first == second
