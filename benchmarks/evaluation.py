"""How long held-out records take to be evaluated, against asking for their answers one by one.

    python -m benchmarks.evaluation [--json] [--model FOLDER] [--records 100] [--batch-sizes 8 16 32]

The examiner reckons the losses and has the prompts answered in batches of like length; the other way is plain
`generate` for one prompt after the other, and no losses. A share of the records is answered by the one and
then by the other, share after share, so that whatever else the machine does meets both. The answers of both
are compared: in bfloat16 a batch rounds otherwise, and a greedy answer may part from the other in the middle.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import GenerationConfig

from chat_template import ChatTemplate
from config import Config, EvaluationConfig, Paths, load_config
from evaluation.examination import Examiner
from evaluation.graders import GraderSpec
from evaluation.items import Item
from examples.make_tickets import HELD_OUT_FILE, TRAIN_FILE
from training.base_model import locate_base
from training.model import choose_precision, load_base, set_threads

SHARES = 2
WANTED_RATIO = 0.4


@dataclass
class Timing:
    """Seconds of each way, summed over the shares."""

    single: float = 0.0
    losses: dict[int, float] = field(default_factory=dict)
    """By batch size, as are the answers."""
    answers: dict[int, float] = field(default_factory=dict)
    tokens: int = 0
    same_answers: int = 0

    def ratio(self, size: int) -> float:
        """Return the time of the examiner over that of asking one by one."""
        return round((self.losses[size] + self.answers[size]) / self.single, 3)


def read_items(count: int) -> list[Item]:
    """Return held-out tickets, and as many others as are wanted beyond them."""
    lines = [line for file in (HELD_OUT_FILE, TRAIN_FILE) for line in file.read_text("utf-8").splitlines()]
    conversations = [json.loads(line)["messages"] for line in lines[:count]]
    return [
        Item(str(number), talk[:-1], talk[-1]["content"], GraderSpec(name="exact"))
        for number, talk in enumerate(conversations)
    ]


def measure(
    model: Any, template: ChatTemplate, items: Sequence[Item], sizes: Sequence[int], max_new_tokens: int
) -> Timing:
    """Evaluate every item in all ways; the first of `sizes` is the one whose answers are compared."""
    timing = Timing(losses=dict.fromkeys(sizes, 0.0), answers=dict.fromkeys(sizes, 0.0))
    ask_one_by_one(model, template, items[:1], 2)  # the first call allocates what the others reuse
    for share in (items[start::SHARES] for start in range(SHARES)):
        began_at = time.perf_counter()
        plain = ask_one_by_one(model, template, share, max_new_tokens)
        timing.single += time.perf_counter() - began_at
        timing.tokens += sum(map(len, plain))
        for size in sizes:
            examiner = Examiner(
                model,
                template,
                EvaluationConfig(per_device_eval_batch_size=size, max_new_tokens=max_new_tokens),
            )
            began_at = time.perf_counter()
            examiner.losses(share)
            timing.losses[size] += time.perf_counter() - began_at
            began_at = time.perf_counter()
            found = examiner.examine(share, with_losses=False)
            timing.answers[size] += time.perf_counter() - began_at
            if size == sizes[0]:
                answers = [template.decode([*tokens]) for tokens in plain]
                timing.same_answers += sum(
                    one.answer == text for one, text in zip(found, answers, strict=True)
                )
    return timing


def ask_one_by_one(
    model: Any, template: ChatTemplate, items: Sequence[Item], max_new_tokens: int
) -> list[list[int]]:
    """Return the tokens of each answer, without the one that ended it, as plain `generate` gives them."""
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=sorted(template.stop_token_ids),
        pad_token_id=template.pad_token_id,
    )
    answers = []
    for item in items:
        ids = torch.tensor([template.encode_prompt(item.messages)], device=model.device)
        is_bf16 = model.dtype == torch.bfloat16
        with torch.no_grad(), torch.autocast(model.device.type, torch.bfloat16, enabled=is_bf16):
            said = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings
            )
        tokens = said[0, ids.shape[1] :].tolist()
        answers.append([token for token in tokens if token not in template.stop_token_ids])
    return answers


def prepare(folder: Path, model: Path | None) -> tuple[Any, ChatTemplate, Config]:
    """Load the base model as an evaluation does."""
    config = load_config(folder, [] if model is None else [f"model.base={model.resolve()}"])
    base = locate_base(Paths(Path.cwd()), config.model)
    set_threads(config.train)
    loaded = load_base(base, config.model, choose_precision(config.model)).eval()
    return loaded, ChatTemplate.load(base, config.model.chat_template_kwargs), config


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print; ``--json`` prints the figure of the default batch size on the last line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument("--model", type=Path, help="a model folder; by default the embedded one")
    parser.add_argument("--records", type=int, default=100)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--batch-sizes", type=int, nargs="*", default=[], help="beside the default one")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        model, template, config = prepare(Path(folder), options.model)
    default = config.evaluation.per_device_eval_batch_size
    items = read_items(options.records)
    sizes = list(dict.fromkeys([default, *options.batch_sizes]))
    timing = measure(model, template, items, sizes, options.max_new_tokens)
    title = f"{len(items)} records, {timing.tokens} answered tokens, {timing.same_answers} answers the same"
    table = Table("way", "losses (s)", "answers (s)", "time / one by one", title=title)
    table.add_row("one by one", "-", f"{timing.single:.1f}", "1")
    for size in sizes:
        seconds = f"{timing.losses[size]:.1f}", f"{timing.answers[size]:.1f}"
        wanted = f" (at most {WANTED_RATIO})" if size == default else ""
        table.add_row(f"in batches of {size}", *seconds, f"{timing.ratio(size):.3f}{wanted}")
    Console(highlight=False).print(table)
    if options.json:
        print(json.dumps({"batched_vs_single": timing.ratio(default)}))


if __name__ == "__main__":
    main()
