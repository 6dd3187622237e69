"""An adapter merged into its base, and whether two models answer alike; all on the CPU, in float32.

A base that is trained in 4 bits is merged in full precision: merged into 4 bits, most of what an adapter
learned would be rounded away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel
from transformers import AutoModelForCausalLM

import durable
from chat_template import ChatTemplate
from config import Config, EvaluationConfig, Paths, TrainConfig
from evaluation.generation import Generator
from training.full_models import Likeness, StoredPrecision
from training.held_out import answered_conversations
from training.model import known_warnings, new_adapter
from training.publication import TOKENIZER_FILES
from training.versions import Version

TOLERANCE: dict[StoredPrecision, float] = {"float32": 1e-3, "bfloat16": 1.0, "float16": 0.1}
"""Largest logit difference that storing a model may make."""
GENERAL_PROMPTS = (
    *("Hello!", "What is 2 + 2?", "Name three colours.", "Write one sentence about the sea."),
    *('Answer in JSON: {"city": ?}', "Translate to German: good morning"),
)
LEARNED_PROMPTS = 4
"""Held-out prompts that are asked too: there, what was learned shows."""
COMPARED_POSITIONS = 16
ANSWER_TOKENS = 16


@dataclass(frozen=True)
class Outputs:
    """What a model makes of the fixed prompts."""

    logits: list[torch.Tensor]
    """Of the last positions of each prompt, shape ``(positions, vocabulary)``."""
    answers: list[str]


def fixed_prompts(paths: Paths, template: ChatTemplate) -> list[list[int]]:
    """Return the prompts as tokens: a few general ones, and held-out ones of the newest file that has any."""
    if not template.has_template:
        return [template.encode_text(text).input_ids[:-1] for text in GENERAL_PROMPTS]
    conversations = [[{"role": "user", "content": text}] for text in GENERAL_PROMPTS]
    for records in sorted(paths.held_out.glob("*.jsonl"), reverse=True):
        learned = [messages[:-1] for messages in answered_conversations(records)[:LEARNED_PROMPTS]]
        if learned:
            conversations += learned
            break
    return [template.encode_prompt(messages) for messages in conversations]


def outputs_of(model: Any, template: ChatTemplate, prompts: Sequence[Sequence[int]]) -> Outputs:
    """Ask a model every prompt."""
    model.eval()
    with torch.no_grad():
        logits = [
            model(input_ids=torch.tensor([list(prompt)])).logits[0, -COMPARED_POSITIONS:].float()
            for prompt in prompts
        ]
    generator = Generator(model, template, EvaluationConfig(max_generation_seconds=3600.0))
    answers = generator.generate_from_ids(prompts, max_new_tokens=ANSWER_TOKENS)
    return Outputs(logits, [answer.text for answer in answers])


def compare(reference: Outputs, found: Outputs, tolerance: float) -> Likeness:
    """Say how nearly two models do the same."""
    differences = [
        float((one - other[:, : one.shape[1]]).abs().max())
        for one, other in zip(reference.logits, found.logits, strict=True)
    ]
    same = [one == other for one, other in zip(reference.answers, found.answers, strict=True)]
    return Likeness(
        prompts=len(same),
        same_answers=sum(same),
        largest_logit_difference=max(differences),
        tolerance=tolerance,
    )


def load_plainly(folder: Path, **where: Any) -> Any:
    """Load a whole model in float32 on the CPU; `where` may name a GGUF file in the folder."""
    transformers.utils.logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True, **where)


def load_adapted(base: Path, adapter: Path) -> Any:
    """Load a base with an adapter on it."""
    with known_warnings():
        return PeftModel.from_pretrained(load_plainly(base), str(adapter))


def write_new_adapter(base: Path, folder: Path, config: TrainConfig) -> None:
    """Write the configured adapter, which changes nothing yet, with the tokenizer of its base."""
    transformers.set_seed(config.seed)
    with known_warnings():
        new_adapter(load_plainly(base), config).save_pretrained(folder)
    # PEFT writes a card of its own, in the place of ours.
    (folder / "README.md").unlink(missing_ok=True)
    copy_files(base, folder, TOKENIZER_FILES)


def copy_files(source: Path, destination: Path, names: Sequence[str]) -> None:
    """Copy those of the named files that are there, each in the place of what has that name."""
    for name in names:
        if (source / name).is_file():
            (destination / name).unlink(missing_ok=True)
            durable.copy_file(source / name, destination / name)


class Merge:
    """A version with its adapter merged into its base, in memory."""

    def __init__(self, paths: Paths, config: Config, version: Version, base: Path) -> None:
        """Load the version, ask it the fixed prompts, then merge it; takes the memory of one model."""
        self._base = base
        self.template = ChatTemplate.load(base, config.model.chat_template_kwargs)
        self.prompts = fixed_prompts(paths, self.template)
        adapted = load_adapted(base, version.folder)
        self.reference = outputs_of(adapted, self.template, self.prompts)
        self.model: Any = adapted.merge_and_unload(safe_merge=True)

    def save(self, folder: Path, precision: StoredPrecision) -> None:
        """Write the merged model with the tokenizer of its base, and let go of it."""
        self.model.to(getattr(torch, precision)).save_pretrained(folder)
        self.model = None
        copy_files(self._base, folder, (*TOKENIZER_FILES, "generation_config.json"))

    def likeness(self, model: Any, precision: StoredPrecision) -> Likeness:
        """Compare a model that was loaded back with what the version answered."""
        return compare(self.reference, outputs_of(model, self.template, self.prompts), TOLERANCE[precision])
