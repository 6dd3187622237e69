"""What a version says about itself: the facts in its manifest, and the model card made from them."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict

from training.version_report import SliceFacts, VersionReport

VersionDecision = Literal["promote", "hold"]
VersionKind = Literal["training", "consolidation"]


class RecordCounts(BaseModel):
    """How many records of the file a version learned from, and how many were kept for evaluation."""

    model_config = ConfigDict(frozen=True)

    train: int
    held_out: int
    replayed: dict[str, int] = {}
    """By job: records of earlier files that each epoch trained again; `train` is of this file alone."""


class HeldOutResult(BaseModel):
    """Losses of parent and candidate on the same held-out records, in nats per assistant token."""

    model_config = ConfigDict(frozen=True)

    records: int
    before_loss: float | None = None
    """Of the parent version, or of the base model when there is no parent."""
    after_loss: float | None = None
    mean_difference: float | None = None
    """Mean over records of after - before; negative is better."""
    interval: tuple[float, float] | None = None
    """Confidence interval of `mean_difference`."""


class VersionFacts(BaseModel):
    """Where a version comes from and how it did; kept in its manifest for as long as it exists.

    Unknown facts are ignored, so that a manifest written by a later release can be read.
    """

    model_config = ConfigDict(frozen=True)

    version: str = ""
    """Name of the version, for instance ``v0007``; given at publication."""
    kind: VersionKind = "training"
    """``consolidation``: the parent merged into a full model, with a new adapter that changes nothing yet."""
    parent: str | None
    """The version this one continues; None when it was trained from the base model."""
    consolidated: str | None = None
    """Folder in models/consolidated/ this version stands on; None: it stands on the configured base."""
    job_id: str
    """The job it came from; ``consolidation-v0003`` when v0003 was merged."""
    input_name: str
    """The dropped file's name, escaped for display."""
    input_sha256: str
    base_model: str
    """What transformers loads as the base: a folder or a Hugging Face name."""
    base_sha256: str
    """Hash of the base weights; an adapter is worthless on any other."""
    created_at: datetime
    config: dict[str, Any]
    """The resolved configuration of the run."""
    records: RecordCounts
    steps: int
    epochs: int
    tokens: int
    """Tokens trained on in this run, padding not counted."""
    train_loss: float | None
    """Mean of the last steps' losses, in nats per assistant token."""
    held_out: HeldOutResult
    decision: VersionDecision
    decision_reason: str
    """One sentence; the numbers of the file's own held-out records, or what came first against it."""
    decision_reasons: tuple[str, ...] = ()
    """Everything that speaks against the version."""
    best_checkpoint: int | None = None
    """Step of the checkpoint that became this version."""


def model_card(facts: VersionFacts, report: VersionReport | None = None) -> str:
    """Return the README.md of a version: origin, scores, and how to load it without trainbox."""
    header = yaml.safe_dump(
        {"base_model": facts.base_model, "library_name": "peft", "tags": ["lora", "trainbox"]},
        sort_keys=False,
    )
    return f"""---
{header}---

# {facts.version}

A LoRA adapter, made by trainbox on {facts.created_at:%Y-%m-%d %H:%M} UTC.

| | |
|---|---|
| Base model | {_code(facts.base_model)} |
| Base weights, sha256 | {_code(facts.base_sha256)} |
| Continues | {facts.parent or "nothing: trained from the base model"} |
| Trained on | {_code(facts.input_name)}, {facts.records.train} records, {facts.records.held_out} held out |
| Trained again | {_replayed(facts.records.replayed)} |
| Data, sha256 | {_code(facts.input_sha256)} |
| Job | {facts.job_id} |
| Training | {facts.steps} steps, {facts.epochs} epochs, {facts.tokens} tokens |
| Training loss | {_loss(facts.train_loss)} |
| Held-out loss before | {_loss(facts.held_out.before_loss)} |
| Held-out loss after | {_loss(facts.held_out.after_loss)} |
| Decision | {facts.decision}: {_cell(facts.decision_reason)} |

Losses are nats per assistant token; the held-out ones are of the same {facts.held_out.records} records.
The losses above count every token alike, those of the decision every record alike.
All facts, and the sha256 of each file, are in `manifest.json`.
{"" if report is None else _tested(facts, report)}
## Use it

Any program that reads LoRA adapters loads this folder; with PEFT and Transformers:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # the folder this file lies in
tokenizer = AutoTokenizer.from_pretrained(folder)
base = AutoModelForCausalLM.from_pretrained({facts.base_model!r})
model = PeftModel.from_pretrained(base, folder)

question = [{{"role": "user", "content": "Hello"}}]
text = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
answer = model.generate(**inputs, max_new_tokens=100, do_sample=False)
print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```
"""


def _replayed(records: dict[str, int]) -> str:
    if not records:
        return "nothing of earlier files"
    return f"in each epoch {sum(records.values())} records of {len(records)} earlier files"


def _tested(facts: VersionFacts, report: VersionReport) -> str:
    """Return the section about the test: a table, and everything that speaks against the version."""
    against = "".join(f"- {_cell(reason)}\n" for reason in facts.decision_reasons)
    rows = "".join(_slice_row(part, report) for part in report.slices)
    return f"""
## Tested

Base, what the version continues, and the version itself, asked the same records. Words: share of the
expected answers that are said word for word. Answers: share graded right, where there was time for answers;
of preference pairs, share whose chosen answer is likelier than the rejected one. Texts have a loss alone.

| Slice | Records | Loss | Words | Answers |
|---|---|---|---|---|
{rows}
{f"Against it:{chr(10)}{chr(10)}{against}" if against else "Nothing got significantly worse."}
The numbers behind this are in `evaluation.json`, every single answer in `evaluation/`.
"""


def _slice_row(part: SliceFacts, report: VersionReport) -> str:
    scores = [report.scores.get(role, {}).get(part.slice_id) for role in ("base", "current", "candidate")]
    losses = " → ".join(_loss(None if found is None else found.loss) for found in scores)
    words = " → ".join(_percent(None if found is None else found.verbatim) for found in scores)
    answers = " → ".join(_percent(None if found is None else found.accuracy) for found in scores)
    return f"| {_code(part.name)} | {part.records} | {losses} | {words} | {answers} |\n"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.0%}"


def _loss(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4f}"


def _code(text: str) -> str:
    return f"`{_cell(text).replace('`', chr(39))}`"


def _cell(text: str) -> str:
    """Keep text inside one cell of a Markdown table."""
    return " ".join(text.split()).replace("|", r"\|")
