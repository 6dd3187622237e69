"""Alerts: one a category, raised once when something is wrong and resolved once when it is not any more.

One that grows graver is raised again with the graver word, and still resolved once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

from monitoring.alert_rules import Rule, build_rules
from monitoring.detectors import finite_only
from monitoring.events import now
from monitoring.observation import Detail, Observation, Severity, Thresholds, Verdict

GRAVITY: tuple[Severity, ...] = ("critical", "warning", "info")


class Alert(BaseModel):
    """Something a person should know: what was seen, what it means, and what to do."""

    model_config = ConfigDict(frozen=True)

    severity: Severity
    category: str
    message: str
    details: dict[str, Detail]
    """The evidence, with the step where there is one; no number in it is NaN."""
    recommendation: str
    timestamp: datetime
    """When it was raised; for display."""


@dataclass(frozen=True, slots=True)
class Transition:
    """An alert began or ended."""

    kind: Literal["raised", "resolved"]
    alert: Alert
    at: datetime


class SmartAlerts:
    """Judges the observations of one run, or of what else has a beginning and an end."""

    def __init__(self, limits: Thresholds | None = None, clock: Callable[[], datetime] = now) -> None:
        """`clock` gives the times that are shown; nothing is decided by them."""
        self._limits = limits or Thresholds()
        self._clock = clock
        self._forget()

    def observe(self, observation: Observation) -> list[Transition]:
        """Judge what is known now; return the alerts that began or ended with it."""
        changes = (watch.observe(observation, self._clock) for watch in self._watches)
        return [change for change in changes if change is not None]

    def end(self) -> list[Transition]:
        """Resolve what is active and forget all that was seen; the next observation is a first one."""
        at, ended = self._clock(), self.active()
        self._forget()
        return [Transition("resolved", alert, at) for alert in ended]

    def active(self) -> tuple[Alert, ...]:
        """Return the alerts that have begun and not ended, the gravest first."""
        alerts = [watch.alert for watch in self._watches if watch.alert is not None]
        return tuple(sorted(alerts, key=lambda alert: GRAVITY.index(alert.severity)))

    def summary(self) -> dict[Severity, int]:
        """Count the active alerts by severity."""
        counts = dict.fromkeys(GRAVITY, 0)
        for alert in self.active():
            counts[alert.severity] += 1
        return counts

    def _forget(self) -> None:
        self._watches = [_Watch(rule) for rule in build_rules(self._limits)]


class _Watch:
    """One rule and the alert that it has raised; the evidence is that of when it was raised."""

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._bad = self._good = 0
        self.alert: Alert | None = None

    def observe(self, observation: Observation, clock: Callable[[], datetime]) -> Transition | None:
        verdict = self._rule.judge(observation)
        if verdict is None:
            return None
        self._bad = self._bad + 1 if verdict.state == "bad" else 0
        self._good = self._good + 1 if verdict.state == "good" else 0
        if self._bad >= self._rule.raise_after and self._is_graver(verdict):
            self.alert = self._alert(finite_only(verdict), observation.step, clock())
            return Transition("raised", self.alert, self.alert.timestamp)
        if self.alert is not None and self._good >= self._rule.clear_after:
            ended, self.alert = self.alert, None
            return Transition("resolved", ended, clock())
        return None

    def _severity(self, verdict: Verdict) -> Severity:
        return verdict.severity or self._rule.severity

    def _is_graver(self, verdict: Verdict) -> bool:
        if self.alert is None:
            return True
        return GRAVITY.index(self._severity(verdict)) < GRAVITY.index(self.alert.severity)

    def _alert(self, verdict: Verdict, step: int | None, at: datetime) -> Alert:
        return Alert(
            severity=self._severity(verdict),
            category=self._rule.category,
            message=verdict.message,
            details={"step": step, **verdict.details},
            recommendation=self._rule.recommendation,
            timestamp=at,
        )
