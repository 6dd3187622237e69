"""The user unit under a real systemd of a user."""

from __future__ import annotations

from tests.systemd.machine import SHARED, Unit
from tests.waiting import wait_until


def test_a_user_starts_stops_and_goes_on_without_being_root(user_unit: Unit) -> None:
    user_unit.drop(steps=60, hold_at=(20,))
    user_unit.start()
    wait_until(lambda: user_unit.is_at_step(5))
    assert user_unit.property("StatusText") == "training a.jsonl"
    user_unit.stop()
    assert (user_unit.property("ActiveState"), user_unit.property("Result")) == ("inactive", "success")
    user_unit.let_go(20)
    user_unit.systemctl("start", user_unit.name)
    wait_until(user_unit.is_done)
    assert user_unit.steps() == list(range(1, 61))


def test_systemd_has_nothing_to_say_about_the_user_unit(user_unit: Unit) -> None:
    verified = user_unit.run("systemd-analyze", "--user", "verify", "--man=no", user_unit.file)
    assert (verified.stdout, verified.stderr) == ("", "")


def test_the_command_tells_what_to_run_next_and_enables_nothing(user_unit: Unit) -> None:
    again = user_unit.trainbox("install-service", "--base", str(user_unit.inside), "--name", user_unit.name)
    assert again.splitlines() == [
        f"Wrote {user_unit.file}",
        "Now run:",
        "  systemctl --user daemon-reload",
        f"  systemctl --user enable --now {user_unit.name}",
        "  loginctl enable-linger",
    ]
    enabled = user_unit.systemctl("is-enabled", user_unit.name, check=False).stdout.strip()
    assert (enabled, user_unit.property("ActiveState")) == ("disabled", "inactive")
    assert str(SHARED).replace("%", "%%") in user_unit.text
