"""State-changing calls of a tree of processes are held until they have been looked at."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.crash.calls import Call, is_supported, run_held

SCRIPT = """
import os, subprocess, sys
with open("a", "w") as file:
    file.write(sys.stdin.read())
    file.flush()
    os.fsync(file.fileno())
subprocess.run([sys.executable, "-c", "import os; os.rename('a', 'b')"], check=True)
print("done")
"""


@pytest.fixture(autouse=True)
def _seccomp() -> None:
    """Skip where calls cannot be held; on the machine that judges changes they must be."""
    if not is_supported():
        reason = "holding calls needs Linux on x86-64 with seccomp notifications"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


def test_each_call_is_held_before_it_happens_also_in_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    seen: list[tuple[str, str, list[str]]] = []

    def look(call: Call) -> None:
        seen.append((call.name, call.path, sorted(os.listdir(tmp_path))))

    assert run_held([sys.executable, "-c", SCRIPT], tmp_path, look, "words") == "done\n"
    assert seen[0] == ("openat", "", [])
    assert seen[1:-1] == [("write", "a", ["a"]), ("fsync", "a", ["a"])]
    assert seen[-1] == ("rename", "", ["a"])
    assert (tmp_path / "b").read_text(encoding="utf-8") == "words"


def test_a_command_that_fails_is_told(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        run_held([sys.executable, "-c", "raise SystemExit(3)"], tmp_path, lambda call: None, "")
