"""A base folder as a very long run leaves it, made by the code that writes runs; nothing is trained."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

import durable
from config import Paths, RunPaths
from monitoring.events import (
    EvaluatedEvent,
    Event,
    ExampleEvent,
    FixedEvalEvent,
    PlanEvent,
    SignalsEvent,
    StepEvent,
    encode_event,
    now,
)
from monitoring.lora_monitor import DIGITS
from monitoring.training_status import StatusWriter
from training import checkpoints
from training.checkpoint_scorer import CheckpointHistory
from training.checkpoints import CheckpointFacts
from training.jobs import Job, JobStore, Source, make_job_id

SHA256 = "3f9c2a10" + "0" * 56
LAYERS, PROJECTIONS = 30, ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
EVALUATIONS, CHECKPOINTS, PROMPTS = 100, 100, 4
TOKENS, STEP_SECONDS = 2048, 0.25
SHOWN_STEPS = 300
"""So many of the last steps go through the status document."""


def write_long_run(paths: Paths, steps: int, seed: int = 0) -> StatusWriter:
    """Write a run in training after `steps` of twice as many steps; return the writer of its status."""
    paths.create()
    job = _job()
    run = paths.run(job.job_id)
    durable.make_folder(run.data)
    JobStore(paths).save(job)
    draw = random.Random(seed)
    events = list(_events(steps, draw))
    with open(run.events, "wb") as file:
        file.writelines(encode_event(event) for event in events)
    _write_answers(run, steps)
    _write_checkpoints(run, steps)
    return _write_status(paths, job, events)


def losses(step: int, steps: int, draw: random.Random) -> float:
    """Return what a loss may look like: it falls, more and more slowly, and is noisy."""
    return 0.4 + 2 * math.exp(-6 * step / steps) + 0.15 * draw.random()


def _job() -> Job:
    return Job(
        job_id=make_job_id(1, SHA256),
        number=1,
        sha256=SHA256,
        size_bytes=2**30,
        name="everything.jsonl",
        place="everything.jsonl",
        suffix=".jsonl",
        source=Source(relative_path="everything.jsonl", device=1, inode=1, mtime_ns=1),
        claimed_at=now(),
        state="running",
        attempts=1,
        started=True,
    )


def _events(steps: int, draw: random.Random) -> Iterator[Event]:
    total = 2 * steps
    yield PlanEvent(
        records=8 * total, epochs=1, steps_per_epoch=total, total_steps=total,
        tokens_per_epoch=TOKENS * total, trainable_parameters=4_884_480,
    )  # fmt: skip
    history = CheckpointHistory()
    every = max(1, steps // EVALUATIONS)
    for step in range(1, steps + 1):
        loss = losses(step, steps, draw)
        yield StepEvent(
            step=step, total_steps=total, epoch=step / total, loss=loss,
            learning_rate=2e-4 * (1 - step / total), grad_norm=1 + draw.random(), tokens=TOKENS,
            seconds=STEP_SECONDS * (1 + 0.1 * draw.random()),
        )  # fmt: skip
        if step % every == 0:
            scored = history.add(step, loss + 0.1, loss)
            yield EvaluatedEvent(
                step=step, eval_loss=loss + 0.1, records=100, tokens=8000, train_loss=loss, score=scored.score
            )
            said = [_example(step, number, loss) for number in range(PROMPTS)]
            yield from said
            matches = tuple(one.answer_matches for one in said)
            yield FixedEvalEvent(
                step=step, em=sum(matches) / PROMPTS, ce=loss + 0.1, ece=0.1, tokens=8000, matches=matches
            )
    yield signals(steps, draw)


def _example(step: int, number: int, loss: float) -> ExampleEvent:
    matches = (step + number) % 3 == 0
    return ExampleEvent(
        step=step, system_prompt="Answer in one sentence.", prompt=f"What is {number} and {number}?",
        golden_answer=f"It is {2 * number}.", model_answer=f"It is {2 * number + (not matches)}.",
        answer_matches=matches, golden_tokens=5, model_tokens=5, loss=loss,
    )  # fmt: skip


def signals(step: int, draw: random.Random) -> SignalsEvent:
    names = [f"model.layers.{depth}.self_attn.{name}" for depth in range(LAYERS) for name in PROJECTIONS]
    fields = ("mean_grad_norm", "max_grad_norm", "current_grad_norm", "mean_update", "max_update")
    more = ("current_update", "num_updates", "update_ratio", "norm_a", "norm_b", "effective_rank")
    summary = {
        "total_layers": len(names), "active_layers": len(names), "dead_layers": (), "vanishing_layers": (),
        "exploding_layers": (), "broken_layers": (), "smallest_grad_norm": 0.01, "largest_grad_norm": 1.0,
        "gradient_imbalance": 100.0,
        "top_layers": [{"name": name, "grad_norm": 1 - place / 10} for place, name in enumerate(names[:5])],
    }  # fmt: skip
    return SignalsEvent(
        step=step,
        monitoring_overhead=0.004,
        token_entropy=1.1,
        lora_stats={
            name: {field: round(draw.random(), DIGITS) for field in (*fields, *more)} for name in names
        },
        lora_summary=summary,
    )


def _write_answers(run: RunPaths, steps: int) -> None:
    durable.make_folder(run.evolution)
    every = max(1, steps // EVALUATIONS)
    for step in range(0, steps + 1, every):
        said = [_example(step, number, 1.0) for number in range(PROMPTS)]
        examples = [
            {
                "example_id": f"{number:04d}", "step": step, "input": one.prompt,
                "expected_output": one.golden_answer, "model_output": one.model_answer, "loss": one.loss,
                "exact_match": one.answer_matches, "output_length": one.model_tokens,
            }
            for number, one in enumerate(said)
        ]  # fmt: skip
        durable.write_json(run.evolution / f"step_{step:06d}.json", {"examples": examples}, sync=False)


def _write_checkpoints(run: RunPaths, steps: int) -> None:
    history = CheckpointHistory()
    for number in range(1, CHECKPOINTS + 1):
        step = max(1, number * steps // CHECKPOINTS)
        folder = run.checkpoint(step)
        if folder.exists():
            continue
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_bytes(b"weights")
        scored = history.add(step, 0.5 + 1 / number, 0.4 + 1 / number)
        facts = CheckpointFacts(
            step=step, epoch=step / steps, tokens=step, precision="float32", micro_batch=8,
            eval_loss=scored.eval_loss, train_loss=scored.train_loss, is_candidate=True,
        )  # fmt: skip
        checkpoints.seal(folder, facts, scored)


def _write_status(paths: Paths, job: Job, events: list[Event]) -> StatusWriter:
    writer = StatusWriter(paths.status_file, interval_seconds=2.0)
    writer.begin_run(job_id=job.job_id, current_file=job.name, state="training", status="training")
    for event in [events[0], *events[-SHOWN_STEPS:]]:
        writer.observe(event)
    writer.write()
    return writer
