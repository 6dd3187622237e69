"""One job on its way to a version, in this process and with the tiny model."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from config import MonitoringConfig
from durable import read_json, sha256_file, verify_folder
from monitoring.events import decode_event
from monitoring.live_monitor import EntropyCollector, LiveMonitor, LoRACollector
from monitoring.training_status import StatusWriter
from tests.exactness import learned
from training import run
from training.batches import Batch, StepPlan
from training.checkpoints import list_checkpoints
from training.trainer import ChatTrainer, Losses
from training.versions import Version, VersionStore

Records = Callable[..., list[dict[str, Any]]]

EXACT = ("train.lora_dropout=0.1", "train.gradient_accumulation_steps=2", "train.num_train_epochs=2")
STEPS = ("train.per_device_train_batch_size=2", "train.eval_steps=3")


ANSWERS = {"the colour is red", "green", "the colour is blue, please", "grey as the cat"}


def of_kind(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in events if event["event"] == kind]


def version_of(workshop: Any, name: str) -> Version:
    return VersionStore(workshop.paths).get(name)


def losses_of(workshop: Any, name: str) -> tuple[float, float]:
    """Return the held-out losses before and after; they have to be there."""
    held_out = version_of(workshop, name).facts.held_out
    assert held_out.before_loss is not None and held_out.after_loss is not None
    return held_out.before_loss, held_out.after_loss


def adapter_of(workshop: Any, name: str) -> str:
    return sha256_file(version_of(workshop, name).folder / "adapter_model.safetensors")


def test_a_file_becomes_a_version_that_learned_it(workshop: Any, make_chats: Records) -> None:
    job = workshop.job(make_chats(60), "train.num_train_epochs=4")
    outcome, events = workshop.carry_out(job)
    assert (outcome.outcome, outcome.version) == ("completed", "v0001")
    version = version_of(workshop, "v0001")
    verify_folder(version.folder)
    facts = version.facts
    before, after = losses_of(workshop, "v0001")
    assert after < before - 0.5
    assert facts.decision == "promote"
    assert facts.records.train + facts.records.held_out == 60
    assert facts.records.held_out == facts.held_out.records > 0
    plan = of_kind(events, "plan")[0]
    assert facts.steps == plan["total_steps"] == len(of_kind(events, "step"))
    assert facts.tokens == sum(step["tokens"] for step in of_kind(events, "step"))
    assert facts.tokens == 4 * plan["tokens_per_epoch"]
    assert [event["phase"] for event in of_kind(events, "phase") if event["done"] is None] == [
        *("validating", "loading", "training", "evaluating", "publishing")
    ]


# PEFT reads an attribute that transformers deprecates; `training.model` silences it where we load.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_plain_peft_and_transformers_load_a_version(workshop: Any, make_chats: Records) -> None:
    workshop.carry_out(workshop.job(make_chats(30)))
    folder = version_of(workshop, "v0001").folder
    base = AutoModelForCausalLM.from_pretrained(workshop.model)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "red"}], tokenize=False)
    ids = tokenizer(text, return_tensors="pt").input_ids
    before = base(ids).logits
    after = PeftModel.from_pretrained(base, folder)(ids).logits
    assert not before.allclose(after)


@pytest.mark.config_key("train.eval_steps")
def test_evaluations_and_checkpoints_come_at_the_same_steps(workshop: Any, make_chats: Records) -> None:
    job = workshop.job(make_chats(64), *STEPS, "train.eval_steps=5", "train.save_total_limit=100")
    _, events = workshop.carry_out(job)
    steps = [event["step"] for event in of_kind(events, "evaluated")]
    assert steps[:3] == [5, 10, 15]
    assert steps[-1] == of_kind(events, "plan")[0]["total_steps"]
    assert [event["step"] for event in of_kind(events, "checkpoint")] == steps
    stored = list_checkpoints(workshop.folder(job).folder)
    assert [checkpoint.facts.eval_loss for checkpoint in stored] == [
        event["eval_loss"] for event in of_kind(events, "evaluated")
    ]
    assert all(checkpoint.facts.train_loss is not None for checkpoint in stored)


@pytest.mark.config_key("train.save_total_limit")
def test_rotation_keeps_as_many_checkpoints_as_configured(workshop: Any, make_chats: Records) -> None:
    job = workshop.job(make_chats(64), *STEPS, "train.save_total_limit=2")
    workshop.carry_out(job)
    kept = [checkpoint.facts for checkpoint in list_checkpoints(workshop.folder(job).folder)]
    facts = version_of(workshop, "v0001").facts
    assert len(kept) <= 2
    assert kept[-1].step == facts.steps
    assert facts.best_checkpoint in [checkpoint.step for checkpoint in kept]


def test_the_log_has_one_line_a_step_in_the_words_of_the_viewers(workshop: Any, make_chats: Records) -> None:
    job = workshop.job(make_chats(40), *STEPS)
    _, events = workshop.carry_out(job)
    lines = [orjson.loads(line) for line in workshop.folder(job).trainer_log.read_bytes().splitlines()]
    total = of_kind(events, "plan")[0]["total_steps"]
    steps = [line for line in lines if "loss" in line]
    assert [line["current_steps"] for line in steps] == list(range(1, total + 1))
    wanted = {"current_steps", "total_steps", "loss", "lr", "epoch", "percentage", "elapsed_time"}
    assert wanted | {"remaining_time", "total_tokens"} <= set(steps[-1])
    assert steps[-1]["percentage"] == 100.0
    assert [line["eval_loss"] for line in lines if "eval_loss" in line] == [
        event["eval_loss"] for event in of_kind(events, "evaluated")
    ]


@pytest.mark.parametrize("batching", ["buckets", "packed"])
@pytest.mark.parametrize("command", ["pause", "stop"])
def test_a_run_that_was_interrupted_ends_in_the_same_bytes(
    command: str, batching: str, workshop: Any, make_chats: Records
) -> None:
    settings = (*EXACT, *STEPS, f"train.batching={batching}")
    workshop.carry_out(workshop.job(make_chats(40), *settings))
    job = workshop.job(make_chats(40), *settings)
    first, _ = workshop.carry_out(job, command=command, at_step=5)
    second, events = workshop.carry_out(job)
    assert first.outcome == {"pause": "paused", "stop": "stopped"}[command]
    assert first.step == 5
    assert second.outcome == "completed"
    assert of_kind(events, "step")[0]["step"] == 6
    assert learned(workshop.paths, "v0002") == learned(workshop.paths, "v0001")


def test_preference_runs_are_exact_to_resume_too(workshop: Any, make_pairs: Records) -> None:
    for loss, batching in (("dpo", "buckets"), ("dpo", "packed"), ("orpo", "buckets")):
        settings = (*EXACT, *STEPS, f"train.preference_loss={loss}", f"train.batching={batching}")
        undisturbed, _ = workshop.carry_out(workshop.job(make_pairs(30), *settings))
        job = workshop.job(make_pairs(30), *settings)
        workshop.carry_out(job, command="pause", at_step=5)
        resumed, _ = workshop.carry_out(job)
        assert learned(workshop.paths, resumed.version) == learned(workshop.paths, undisturbed.version)


def test_the_log_of_a_resumed_run_has_every_step_once(workshop: Any, make_chats: Records) -> None:
    job = workshop.job(make_chats(40), *STEPS)
    workshop.carry_out(job, command="pause", at_step=5)
    workshop.carry_out(job)
    lines = [orjson.loads(line) for line in workshop.folder(job).trainer_log.read_bytes().splitlines()]
    steps = [line["current_steps"] for line in lines if "loss" in line]
    assert steps == list(range(1, steps[-1] + 1))
    tokens = [line["total_tokens"] for line in lines if "loss" in line]
    assert tokens == sorted(tokens)


def test_a_command_at_an_evaluation_leaves_it_to_the_resumed_run(workshop: Any, make_chats: Records) -> None:
    job = workshop.job(make_chats(40), *STEPS)
    paused, first = workshop.carry_out(job, command="pause", at_step=3)
    assert paused.step == 3
    assert of_kind(first, "evaluated") == []
    completed, second = workshop.carry_out(job)
    assert completed.outcome == "completed"
    assert of_kind(second, "evaluated")[0]["step"] == 3
    assert of_kind(second, "checkpoint")[0]["step"] == 3


def test_a_pause_after_the_last_step_leaves_only_the_end_to_do(workshop: Any, make_chats: Records) -> None:
    job = workshop.job(make_chats(24), *STEPS)
    total = of_kind(workshop.carry_out(job, command="pause", at_step=2)[1], "plan")[0]["total_steps"]
    paused, _ = workshop.carry_out(job, command="pause", at_step=total)
    assert (paused.outcome, paused.step) == ("paused", total)
    completed, events = workshop.carry_out(job)
    assert completed.outcome == "completed"
    assert of_kind(events, "step") == []


def test_a_skipped_run_leaves_no_version(workshop: Any, make_chats: Records) -> None:
    job = workshop.job(make_chats(40), *STEPS)
    outcome, events = workshop.carry_out(job, command="skip", at_step=2)
    assert outcome.outcome == "skipped"
    assert len(of_kind(events, "step")) == 2
    assert list(VersionStore(workshop.paths).list()) == []


def test_a_torn_checkpoint_is_removed_and_the_whole_one_before_it_used(
    workshop: Any, make_chats: Records
) -> None:
    job = workshop.job(make_chats(40), *STEPS, "train.save_total_limit=10")
    workshop.carry_out(job, command="pause", at_step=5)
    folder = workshop.folder(job).folder
    torn = folder / "checkpoint-5" / "optimizer.pt"
    torn.write_bytes(torn.read_bytes()[:-100])
    outcome, events = workshop.carry_out(job)
    assert of_kind(events, "step")[0]["step"] == 4
    assert outcome.outcome == "completed"


def test_three_files_in_a_row_each_go_on_from_the_one_before(workshop: Any, make_chats: Records) -> None:
    store = VersionStore(workshop.paths)
    untrained = last_loss = math.nan
    for number in (1, 2, 3):
        records = make_chats(48, seed=number)
        job = workshop.job(records, "train.num_train_epochs=8")
        outcome, events = workshop.carry_out(job)
        assert outcome.outcome == "completed"
        version = store.promote(outcome.version, "promoted by the test")
        parent = None if number == 1 else f"v{number - 1:04d}"
        assert version.facts.parent == of_kind(events, "plan")[0]["parent"] == parent
        before, after = losses_of(workshop, version.name)
        first_losses = before, of_kind(events, "step")[0]["loss"]
        if number == 1:
            untrained = before
        else:
            # Other records of the same task: the losses agree, though not to the last digit.
            assert max(first_losses) < (last_loss + untrained) / 2
        last_loss = after
    assert last_loss < 0.7 * untrained


def test_a_continued_adapter_begins_as_the_one_before_ended(workshop: Any, make_chats: Records) -> None:
    records = make_chats(48)
    first, _ = workshop.carry_out(workshop.job(records, *STEPS))
    VersionStore(workshop.paths).promote(first.version, "promoted by the test")
    workshop.carry_out(workshop.job(records, *STEPS))
    before, after = (version_of(workshop, name).facts.held_out for name in ("v0001", "v0002"))
    # The same records are held out again, since they were once.
    assert before.records == after.records
    assert after.before_loss == pytest.approx(before.after_loss, abs=1e-6)


def test_every_record_is_trained_once_an_epoch(
    workshop: Any, make_chats: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[list[int]] = []
    plain = StepPlan.__iter__

    def watched(self: StepPlan) -> Any:
        for step in plain(self):
            trained.append(step)
            yield step

    monkeypatch.setattr(StepPlan, "__iter__", watched)
    job = workshop.job(make_chats(45), *STEPS, "train.num_train_epochs=3", "data.held_out_min_records=1000")
    _, events = workshop.carry_out(job)
    plan = of_kind(events, "plan")[0]
    assert len(trained) == plan["total_steps"] == 3 * 23
    assert set(Counter(record for step in trained for record in step).values()) == {3}


def test_a_file_smaller_than_a_batch_is_trained(workshop: Any, make_chats: Records) -> None:
    outcome, events = workshop.carry_out(workshop.job(make_chats(3), "train.per_device_train_batch_size=8"))
    assert outcome.outcome == "completed"
    assert of_kind(events, "plan")[0]["total_steps"] == 1
    facts = version_of(workshop, "v0001").facts
    assert facts.held_out.records == 0
    assert facts.train_loss is not None
    assert (facts.decision, facts.decision_reason) == ("promote", "no held-out records to test on")


def test_plain_texts_are_trained(workshop: Any) -> None:
    texts = [{"text": f"the rain of day {day} was grey"} for day in range(40)]
    outcome, _ = workshop.carry_out(workshop.job(texts, "train.num_train_epochs=4"))
    before, after = losses_of(workshop, outcome.version)
    assert after < before


@pytest.mark.config_key("train.preference_loss", "train.preference_beta")
@pytest.mark.parametrize("loss", ["dpo", "orpo"])
def test_preference_pairs_are_learned(loss: str, workshop: Any, make_pairs: Records) -> None:
    settings = (f"train.preference_loss={loss}", "train.num_train_epochs=4")
    gentle, _ = workshop.carry_out(workshop.job(make_pairs(40), *settings, "train.preference_beta=0.1"))
    strict, _ = workshop.carry_out(workshop.job(make_pairs(40), *settings, "train.preference_beta=0.5"))
    results = [losses_of(workshop, outcome.version) for outcome in (gentle, strict)]
    assert all(after < before for before, after in results)
    if loss == "dpo":
        # At the start the model is its own reference, and the loss is ln 2 whatever beta is.
        assert [before for before, _ in results] == pytest.approx([0.6931, 0.6931], abs=1e-3)
    assert results[0][1] != results[1][1]


def test_an_unusable_file_is_refused_with_the_reason(workshop: Any) -> None:
    outcome, events = workshop.carry_out(workshop.job([{"nonsense": 1}] * 5))
    assert outcome.outcome == "refused"
    assert "5 of 5 records are refused" in (outcome.message or "")
    assert of_kind(events, "report")[0]["usable"] is False


def test_held_out_records_are_never_trained_in_a_later_file(workshop: Any, make_chats: Records) -> None:
    records = make_chats(60)
    first = workshop.job(records)
    workshop.carry_out(first)
    held_out = _contents(workshop.folder(first).held_out_records)
    second = workshop.job(records, "data.held_out_fraction=0", "train.seed=7")
    workshop.carry_out(second)
    assert held_out
    assert _contents(workshop.folder(second).train_records).isdisjoint(held_out)
    assert _contents(workshop.folder(second).held_out_records) == held_out


def _contents(path: Path) -> set[str]:
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return {json.dumps(record["messages"]) for record in records}


def test_a_job_that_was_published_is_not_trained_again(workshop: Any, make_chats: Records) -> None:
    job = workshop.job(make_chats(24))
    workshop.carry_out(job)
    again, events = workshop.carry_out(job)
    assert (again.outcome, again.version) == ("completed", "v0001")
    assert of_kind(events, "step") == []
    assert len(VersionStore(workshop.paths).list()) == 1


def test_a_resumed_run_keeps_the_parent_it_began_with(workshop: Any, make_chats: Records) -> None:
    store = VersionStore(workshop.paths)
    for seed in (1, 2):
        outcome, _ = workshop.carry_out(workshop.job(make_chats(24, seed=seed)))
        store.promote(outcome.version, "promoted by the test")
    job = workshop.job(make_chats(40, seed=3), *STEPS)
    workshop.carry_out(job, command="pause", at_step=2)
    store.rollback("v0001")
    outcome, _ = workshop.carry_out(job)
    assert version_of(workshop, outcome.version).facts.parent == "v0002"


@pytest.mark.config_key("train.optimizer_state")
def test_moments_are_carried_to_the_next_file_or_reset(workshop: Any, make_chats: Records) -> None:
    first, _ = workshop.carry_out(workshop.job(make_chats(40), *STEPS))
    VersionStore(workshop.paths).promote(first.version, "promoted by the test")
    results: dict[str, set[str]] = {}
    for state in ("carry", "reset", "carry"):
        settings = (*STEPS, f"train.optimizer_state={state}")
        outcome, _ = workshop.carry_out(workshop.job(make_chats(40, seed=5), *settings))
        results.setdefault(state, set()).add(adapter_of(workshop, outcome.version))
    assert len(results["carry"]) == 1
    assert results["carry"] != results["reset"]


@pytest.mark.config_key("train.seed")
def test_the_seed_decides_the_run(workshop: Any, make_chats: Records) -> None:
    hashes = []
    for seed in (1, 1, 2):
        outcome, _ = workshop.carry_out(workshop.job(make_chats(24), f"train.seed={seed}"))
        hashes.append(adapter_of(workshop, outcome.version))
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.config_key("train.learning_rate", "train.lr_scheduler_type", "train.min_lr_ratio")
@pytest.mark.config_key("train.warmup_ratio", "train.weight_decay", "train.max_grad_norm", "train.optim")
@pytest.mark.config_key("train.lora_r", "train.lora_alpha", "train.lora_dropout", "train.lora_target_modules")
@pytest.mark.config_key("train.batching", "train.num_train_epochs", "train.per_device_train_batch_size")
@pytest.mark.config_key("train.gradient_accumulation_steps")
def test_each_key_of_the_optimisation_changes_what_is_learned(workshop: Any, make_chats: Records) -> None:
    changes = (
        "",
        "train.learning_rate=5e-3",
        "train.lr_scheduler_type=linear",
        "train.min_lr_ratio=0.9",
        "train.warmup_ratio=0.5",
        "train.weight_decay=0.5",
        "train.max_grad_norm=0.01",
        "train.optim=sgd",
        "train.lora_r=4",
        "train.lora_alpha=8",
        "train.lora_dropout=0.5",
        "train.lora_target_modules=[q_proj]",
        "train.batching=packed",
        "train.num_train_epochs=2",
        "train.per_device_train_batch_size=5",
        "train.gradient_accumulation_steps=2",
    )
    hashes = {}
    for change in changes:
        settings = (*STEPS, "evaluation.sample_prompts=0", *filter(None, [change]))
        outcome, _ = workshop.carry_out(workshop.job(make_chats(24), *settings))
        assert outcome.outcome == "completed", (change, outcome)
        hashes[change] = adapter_of(workshop, outcome.version)
    assert len(set(hashes.values())) == len(changes), hashes


@pytest.mark.config_key("model.precision")
def test_a_run_in_bfloat16_learns_and_shows_answers(workshop: Any, make_chats: Records) -> None:
    job = workshop.job(make_chats(30), *STEPS, "model.precision=bfloat16")
    outcome, events = workshop.carry_out(job)
    assert outcome.outcome == "completed"
    assert of_kind(events, "example")
    losses = [event["loss"] for event in of_kind(events, "step")]
    assert losses[-1] < losses[0]


@pytest.mark.config_key("evaluation.sample_prompts")
@pytest.mark.parametrize("count", [0, 2])
def test_as_many_held_out_prompts_are_shown_as_configured(
    count: int, workshop: Any, make_chats: Records
) -> None:
    only = "evaluation.fixed_eval_prompts=0"
    job = workshop.job(make_chats(60), f"evaluation.sample_prompts={count}", only)
    _, events = workshop.carry_out(job)
    shown = of_kind(events, "example")
    assert len(shown) == count * len(of_kind(events, "evaluated"))
    if count:
        assert shown[0]["golden_answer"] in ANSWERS
        assert shown[0]["answer_matches"] == (shown[0]["model_answer"] == shown[0]["golden_answer"])


@pytest.mark.config_key("promotion.tolerance", "promotion.confidence")
def test_a_candidate_that_is_worse_is_held(workshop: Any, make_chats: Records) -> None:
    good, _ = workshop.carry_out(workshop.job(make_chats(60), "train.num_train_epochs=4"))
    VersionStore(workshop.paths).promote(good.version, "promoted by the test")
    wrong = [
        {**record, "messages": [record["messages"][0], {"role": "assistant", "content": "z q x j " * 9}]}
        for record in make_chats(30, seed=9)
    ]
    # Learns gibberish while only records of the first file are held out.
    records = [*wrong, *make_chats(60)]
    spoiled, _ = workshop.carry_out(
        workshop.job(records, "data.held_out_fraction=0", "train.num_train_epochs=3")
    )
    facts = version_of(workshop, spoiled.version).facts
    assert facts.held_out.records > 0
    assert facts.held_out.mean_difference is not None
    tolerant, _ = workshop.carry_out(
        workshop.job(
            *(records, "data.held_out_fraction=0", "train.num_train_epochs=3"),
            *("promotion.tolerance=100", "promotion.confidence=0.8"),
        )
    )
    other = version_of(workshop, tolerant.version).facts
    assert other.decision == "promote"
    assert other.held_out.interval != facts.held_out.interval


def test_the_estimate_of_a_later_file_is_how_fast_the_last_one_was(
    workshop: Any, make_chats: Records
) -> None:
    first = workshop.job(make_chats(40), *STEPS)
    workshop.carry_out(first)
    second = workshop.job(make_chats(40, seed=2), *STEPS)
    workshop.carry_out(second)
    assert read_json(workshop.folder(first).report)["plan"]["estimated_seconds"] is None
    assert read_json(workshop.folder(second).report)["plan"]["estimated_seconds"] > 0


def test_a_config_that_cannot_work_fails_the_job_with_the_key(workshop: Any, make_chats: Records) -> None:
    for setting in ("train.optim=magic", "train.lora_target_modules=[nowhere]"):
        outcome, _ = workshop.carry_out(workshop.job(make_chats(24), setting))
        assert (outcome.outcome, outcome.kind) == ("failed", "config")
        assert setting.split("=")[0].split(".")[0] in outcome.message


def test_short_memory_is_told_and_remembered(
    workshop: Any, make_chats: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = ChatTrainer.losses

    def short_of_memory(self: ChatTrainer, batch: Batch) -> Losses:
        if self.model.training and len(batch.counts) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, batch)

    monkeypatch.setattr(ChatTrainer, "losses", short_of_memory)
    job = workshop.job(make_chats(40), "train.eval_steps=1", "train.per_device_train_batch_size=8")
    outcome, events = workshop.carry_out(job, command="pause", at_step=3)
    assert outcome.outcome == "paused"
    assert [event["message"] for event in of_kind(events, "note")] == [
        "memory was short: 8 records in one pass are now 2; what is learned stays the same"
    ]
    assert list_checkpoints(workshop.folder(job).folder)[-1].facts.micro_batch == 2
    outcome, events = workshop.carry_out(job)
    assert outcome.outcome == "completed"
    assert of_kind(events, "note") == []


def test_a_held_out_loss_that_is_not_finite_ends_the_run(
    workshop: Any, make_chats: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = ChatTrainer.losses

    def overflowing(self: ChatTrainer, batch: Batch) -> Losses:
        losses = plain(self, batch)
        return losses if self.model.training else Losses(losses.sums * math.inf, losses.weights)

    monkeypatch.setattr(ChatTrainer, "losses", overflowing)
    outcome, _ = workshop.carry_out(workshop.job(make_chats(40)))
    assert (outcome.outcome, outcome.kind) == ("failed", "nan")
    assert list(VersionStore(workshop.paths).list()) == []


def test_what_memory_held_is_known_to_the_next_run(
    workshop: Any, make_chats: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = ChatTrainer.losses
    tried: list[int] = []

    def short_of_memory(self: ChatTrainer, batch: Batch) -> Losses:
        tried.append(len(batch.counts))
        if len(batch.counts) > (2 if self.model.training else 3):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, batch)

    monkeypatch.setattr(ChatTrainer, "losses", short_of_memory)
    settings = ("evaluation.sample_prompts=0", "evaluation.per_device_eval_batch_size=4")
    workshop.carry_out(workshop.job(make_chats(24), *settings))
    assert max(tried) == 8
    for changes, largest, count in ((), 2, 2), (("train.lora_r=4",), 8, 0):
        tried.clear()
        _, events = workshop.carry_out(workshop.job(make_chats(24), *settings, *changes))
        notes = [event["message"] for event in of_kind(events, "note") if "earlier run" in event["message"]]
        assert (max(tried), len(notes)) == (largest, count)


@pytest.mark.config_key(
    *("scoring.eval_loss_weight", "scoring.gap_weight"),
    *("scoring.perplexity_weight", "scoring.improvement_weight"),
)
def test_each_evaluation_is_scored_once_with_the_configured_weights(
    workshop: Any, make_chats: Records
) -> None:
    weights = {"eval_loss": 0.7, "gap": 0.2, "perplexity": 0.4, "improvement": 0.3}
    job = workshop.job(
        make_chats(40), *STEPS, *(f"scoring.{name}_weight={weight}" for name, weight in weights.items())
    )
    _, events = workshop.carry_out(job)
    evaluations = {event["step"]: event for event in of_kind(events, "evaluated")}
    kept = list_checkpoints(workshop.folder(job).folder)
    assert len(kept) == 3 < len(evaluations)
    for checkpoint in kept:
        scored, said = checkpoint.scored, evaluations[checkpoint.facts.step]
        assert scored is not None
        assert said["score"] == scored.score
        assert said["parts"] == scored.to_json()["parts"]
        assert scored.parts.eval_loss == pytest.approx(0.7 * said["eval_loss"])
        assert scored.parts.gap == pytest.approx(
            0.2 * abs(said["train_loss"] - said["eval_loss"]) / said["eval_loss"]
        )
        assert scored.parts.perplexity == pytest.approx(0.4 * min(math.exp(said["eval_loss"]) / 20, 1))
        assert scored.parts.improvement in (-0.3, 0.0)
    best_step = min(evaluations.values(), key=lambda event: event["score"])["step"]
    assert version_of(workshop, "v0001").facts.best_checkpoint == best_step


def test_a_resumed_run_scores_as_the_undisturbed_one(workshop: Any, make_chats: Records) -> None:
    jobs = [workshop.job(make_chats(40), *STEPS, *EXACT) for _ in range(2)]
    workshop.carry_out(jobs[0])
    workshop.carry_out(jobs[1], command="pause", at_step=5)
    workshop.carry_out(jobs[1])
    scores = [
        [checkpoint.scored for checkpoint in list_checkpoints(workshop.folder(job).folder)] for job in jobs
    ]
    assert scores[0] == scores[1]
    assert None not in scores[0]


@pytest.mark.config_key(
    "train.early_stopping_patience", "train.early_stopping_threshold", "train.early_stopping_metric"
)
def test_a_run_that_stops_getting_better_ends_early_and_says_why(workshop: Any, make_chats: Records) -> None:
    never_better = ("train.early_stopping_patience=2", "train.early_stopping_threshold=100")
    jobs = [workshop.job(make_chats(40), *STEPS, "train.num_train_epochs=2", *never_better) for _ in range(2)]
    outcome, events = workshop.carry_out(jobs[0])
    assert outcome.outcome == "completed"
    steps = [event["step"] for event in of_kind(events, "evaluated")]
    assert len(steps) == 3 and steps[-1] < of_kind(events, "plan")[0]["total_steps"]
    (note,) = [event["message"] for event in of_kind(events, "note") if "early" in event["message"]]
    assert note.startswith("stopped early: eval_loss has not improved by more than 100 in 2 evaluations")
    assert version_of(workshop, "v0001").facts.steps == steps[-1]
    workshop.carry_out(jobs[1], command="pause", at_step=steps[1] + 1)
    _, resumed = workshop.carry_out(jobs[1])
    assert of_kind(resumed, "step")[-1]["step"] == steps[-1]
    by_score = workshop.job(make_chats(40), *STEPS, *never_better, "train.early_stopping_metric=score")
    assert any("score has not" in event.get("message", "") for event in workshop.carry_out(by_score)[1])


@pytest.mark.config_key("monitoring.sample_steps", "monitoring.max_overhead")
def test_close_looks_come_as_often_as_configured(workshop: Any, make_chats: Records) -> None:
    jobs = [
        workshop.job(make_chats(40), *STEPS, *overrides)
        for overrides in (
            ("monitoring.sample_steps=3", "monitoring.max_overhead=1"),
            ("monitoring.sample_steps=3", "monitoring.max_overhead=1e-9"),
            ("monitoring.sample_steps=0",),
        )
    ]
    often, seldom, never = (of_kind(workshop.carry_out(job)[1], "signals") for job in jobs)
    looked_at = [event["step"] for event in often]
    assert looked_at[0] == 2 and len(looked_at) > 2
    # A look that a busy machine held up may put off the next one; none comes earlier.
    assert min(later - earlier for earlier, later in itertools.pairwise(looked_at)) == 3
    assert [event["step"] for event in seldom] == [2]
    assert never == []
    last = often[-1]
    assert 0 < last["token_entropy"] < math.log(400)
    assert 0 < last["monitoring_overhead"] < 1
    summary = last["lora_summary"]
    assert summary["total_layers"] == len(last["lora_stats"]) == 14
    assert summary["dead_layers"] == []
    layer = last["lora_stats"][summary["top_layers"][0]["name"]]
    assert layer["current_grad_norm"] == pytest.approx(summary["top_layers"][0]["grad_norm"])
    assert layer["norm_b"] > 0 and layer["update_ratio"] > 0 and layer["effective_rank"] >= 1


def test_looking_closely_changes_no_byte_of_what_is_learned(workshop: Any, make_chats: Records) -> None:
    jobs = [workshop.job(make_chats(24), *STEPS, f"monitoring.sample_steps={every}") for every in (1, 0)]
    workshop.carry_out(jobs[0])
    assert VersionStore(workshop.paths).current() is None  # it is the daemon that moves it
    workshop.carry_out(jobs[1])
    assert adapter_of(workshop, "v0001") == adapter_of(workshop, "v0002")


class SlowCollector:
    """Takes its time at every step it is shown."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def see_logits(self, logits: torch.Tensor) -> None:
        """Need none."""

    def see_gradients(self, step: int) -> None:
        time.sleep(self._seconds)

    def tell(self) -> dict[str, Any]:
        return {}


def test_a_slow_collector_in_a_real_run_costs_no_more_than_allowed_and_the_status_says_so(
    workshop: Any, make_chats: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowly(parameters: Any, config: MonitoringConfig) -> LiveMonitor:
        collectors = (EntropyCollector(), LoRACollector(parameters), SlowCollector(0.1))
        return LiveMonitor(collectors, interval=1, max_overhead=config.max_overhead)

    monkeypatch.setattr(run, "watch", slowly)
    job = workshop.job(make_chats(200), *STEPS, "train.eval_steps=1000", "monitoring.max_overhead=0.3")
    _, events = workshop.carry_out(job)
    status = StatusWriter(workshop.paths.status_file, 0.0)
    for event in events:
        status.observe(decode_event(orjson.dumps(event)))
    samples, steps = of_kind(events, "signals"), of_kind(events, "step")
    assert 2 <= len(samples) < len(steps) / 2
    reported = read_json(workshop.paths.status_file)["monitoring_overhead"]
    assert reported == samples[-1]["monitoring_overhead"]
    # A look may last longer than the one before, by which it was judged; at every step it would be over that.
    assert 0 < reported < 0.8
