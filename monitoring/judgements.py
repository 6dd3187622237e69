"""Judgements without a memory: a number against its limit."""

from __future__ import annotations

import math

from monitoring.observation import GOOD, UNSURE, Detail, Observation, Thresholds, Verdict

SHOWN_NAMES = 5


def above(
    value: float | None,
    limit: float,
    message: str,
    name: str,
    *,
    clear: float | None = None,
    layers: tuple[str, ...] = (),
) -> Verdict | None:
    """Judge a number that should stay at or below `limit`; it is good again at or below `clear`.

    `message` may name ``{value}`` and ``{limit}``; the names of `layers` are added to it.
    """
    if value is None or math.isnan(value):
        return None
    if value > limit:
        return _bad(value, limit, message, name, layers)
    return GOOD if value <= (limit if clear is None else clear) else UNSURE


def below(
    value: float | None,
    limit: float,
    message: str,
    name: str,
    *,
    clear: float | None = None,
    layers: tuple[str, ...] = (),
) -> Verdict | None:
    """Judge a number that should stay at or above `limit`; it is good again at or above `clear`."""
    if value is None or math.isnan(value):
        return None
    if value < limit:
        return _bad(value, limit, message, name, layers)
    return GOOD if value >= (limit if clear is None else clear) else UNSURE


def _bad(value: float, limit: float, message: str, name: str, layers: tuple[str, ...]) -> Verdict:
    details: dict[str, Detail] = {name: value, "limit": limit}
    if layers:
        details["layers"] = list(layers)
    return Verdict("bad", message.format(value=value, limit=limit) + _named(layers), details)


def _named(layers: tuple[str, ...]) -> str:
    if not layers:
        return ""
    more = f" and {len(layers) - SHOWN_NAMES} more" if len(layers) > SHOWN_NAMES else ""
    return f" ({', '.join(layers[:SHOWN_NAMES])}{more})"


def judge_nan(now: Observation) -> Verdict | None:
    """Judge whether the numbers of training are numbers."""
    broken = {
        name: value
        for name, value in (
            ("loss", now.loss),
            ("gradient norm", now.grad_norm),
            ("evaluation loss", now.eval_loss),
        )
        if value is not None and not math.isfinite(value)
    }
    if broken:
        found = " and ".join(f"{name} is {value}" for name, value in broken.items())
        message = f"{found} at step {now.step}: from here on nothing is learned any more"
        return Verdict("bad", message, {"found": found})
    return None if now.loss is None else GOOD


def judge_variance(now: Observation, limits: Thresholds) -> Verdict | None:
    """Judge the variance of the loss against its square."""
    if now.loss_variance is None or not now.streaming_ce:
        return None
    return above(
        now.loss_variance / now.streaming_ce**2,
        limits.loss_variance,
        "the variance of the loss is {value:.0%} of its square, above {limit:.0%}: single steps say little",
        "relative_variance",
        clear=0.8 * limits.loss_variance,
    )


def judge_low_rate(now: Observation, limits: Thresholds) -> Verdict | None:
    """Judge the learning rate where it may no longer be in its warm-up."""
    if now.learning_rate is None or now.step is None or now.step <= limits.low_learning_rate_step:
        return None
    return below(
        now.learning_rate,
        limits.low_learning_rate,
        "learning rate {value:.3g} is below {limit:g}: the run is nearly done learning",
        "learning_rate",
    )


def judge_dead(now: Observation) -> Verdict | None:
    """Judge how many modules get no gradient: some are worth knowing, most are a fault."""
    if now.dead_layers is None or not now.total_layers:
        return None
    if not now.dead_layers:
        return GOOD
    dead, total = len(now.dead_layers), now.total_layers
    details: dict[str, Detail] = {"dead": dead, "total": total, "layers": list(now.dead_layers)}
    message = f"{dead} of {total} modules get no gradient and learn nothing{_named(now.dead_layers)}"
    return Verdict("bad", message, details, severity="warning" if 2 * dead > total else "info")


def judge_gap(now: Observation, limits: Thresholds) -> Verdict | None:
    """Judge how far the evaluation loss lies above the training loss."""
    if now.eval_loss is None or now.train_loss is None:
        return None
    return above(
        now.eval_loss - now.train_loss,
        limits.val_gap,
        "the evaluation loss is {value:.3g} nats above the training loss: the model knows its training data "
        "better than what they stand for",
        "val_train_gap",
        clear=limits.val_gap_clear,
    )


def judge_lost_skills(now: Observation) -> Verdict | None:
    if now.lost_skills is None:
        return None
    if not now.lost_skills:
        return GOOD
    return Verdict("bad", "; ".join(now.lost_skills), {"suites": list(now.lost_skills)})


def judge_missing(now: Observation) -> Verdict | None:
    """Judge whether all numbers are there that should be."""
    if now.missing_metrics is None:
        return None
    if not now.missing_metrics:
        return GOOD
    names = ", ".join(now.missing_metrics)
    return Verdict("bad", f"no value for {names}, which should be there by now", {"metrics": names})


def judge_served(now: Observation) -> Verdict | None:
    """Judge whether the page can be looked at."""
    if now.monitor_trouble is None:
        return None
    if not now.monitor_trouble:
        return GOOD
    return Verdict("bad", f"nothing is served: {now.monitor_trouble}", {"trouble": now.monitor_trouble})


def judge_throughput(now: Observation, limits: Thresholds) -> Verdict | None:
    """Judge the speed against that of the first steps."""
    if now.tokens_per_sec is None or not now.tokens_per_sec_baseline:
        return None
    return below(
        now.tokens_per_sec / now.tokens_per_sec_baseline,
        limits.throughput_share,
        "the speed has fallen to {value:.0%} of what it was at the beginning",
        "share_of_baseline",
        clear=limits.throughput_share_clear,
    )
