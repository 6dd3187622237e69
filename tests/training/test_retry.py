"""Waits double from the first to the longest, and a success begins them anew."""

from __future__ import annotations

from training.retry import LONGEST_SECONDS, Retry


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_each_failure_waits_twice_as_long_until_one_try_succeeds() -> None:
    clock = Clock()
    retry = Retry(5.0, clock)
    waits = []
    for _ in range(9):
        retry.put_off()
        assert retry.is_waiting and retry.due_at is not None
        waits.append(retry.due_at - clock.now)
        clock.now = retry.due_at
        assert not retry.is_waiting
        retry.begin()
        assert retry.due_at is None
    assert waits == [5.0, 10.0, 20.0, 40.0, 80.0, 160.0, LONGEST_SECONDS, LONGEST_SECONDS, LONGEST_SECONDS]
    retry.succeed()
    retry.put_off()
    assert retry.due_at == clock.now + 5.0


def test_what_costs_little_is_looked_at_again_after_the_first_wait() -> None:
    clock = Clock()
    retry = Retry(5.0, clock)
    for _ in range(3):
        retry.look_again()
        assert retry.due_at == clock.now + 5.0
    assert retry.seconds == 5.0
