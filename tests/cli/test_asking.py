"""`trainbox generate` and `trainbox chat` give the same answers with a server and without one."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from cli import asking
from config import Paths, load_config
from serving import client
from tests.serving.inference_process import ROOT, ServerProcess
from tests.serving.published import make_base, publish
from training.model import load_generator


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Paths:
    made = make_base(tmp_path_factory.mktemp("asked"), tiny_model, "serving.max_prompt_tokens=60")
    publish(made, tiny_model, 4)
    return made


@pytest.fixture(scope="module")
def answers(paths: Paths) -> list[str]:
    """What the version says to two questions, and to the first with the second behind it."""
    generator = load_generator(paths, load_config(paths.base), "current")
    talk = [{"role": "user", "content": "red"}]
    (first,) = generator.generate([talk], max_new_tokens=8)
    talk += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "grey"}]
    (second,) = generator.generate([talk], max_new_tokens=8)
    return [first.text, second.text]


@pytest.fixture(scope="module")
def server(paths: Paths) -> Iterator[ServerProcess]:
    running = ServerProcess(paths)
    yield running
    running.kill()


def trainbox(paths: Paths, *arguments: str, said: str = "", code: int = 0) -> str:
    command = [sys.executable, "-m", "cli", *arguments, "--base", str(paths.base), "--max-new-tokens", "8"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        input=said.encode(),
        capture_output=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == code, done.stderr.decode()
    return done.stdout.decode()


def harmless(text: str) -> str:
    return "".join(sign if unicodedata.category(sign) != "Cc" or sign in "\n\t" else "�" for sign in text)


def test_a_conversation_goes_on_through_a_pipe_without_a_server(paths: Paths, answers: list[str]) -> None:
    said = trainbox(paths, "chat", said="red\ngrey\n/reset\nred\n/quit\nnever read\n")
    first, second = map(harmless, answers)
    assert said == f"{first}\n{second}\n{first}\n"


def test_the_server_answers_where_one_runs(
    paths: Paths, server: ServerProcess, answers: list[str], tmp_path: Path
) -> None:
    """Its base model is out of the way meanwhile: only who has loaded it before can answer."""
    first, second = map(harmless, answers)
    assert trainbox(paths, "chat", said="red\ngrey\n") == f"{first}\n{second}\n"
    hidden = paths.versions / "hidden"
    weights = next(paths.versions.glob("v*/adapter_model.safetensors"))
    weights.rename(hidden)
    try:
        generated = trainbox(paths, "generate", "--prompt", "red")
    finally:
        hidden.rename(weights)
    assert generated == f"{first}\n"


def test_what_the_server_refuses_is_told(paths: Paths, server: ServerProcess) -> None:
    assert trainbox(paths, "generate", "--prompt", "rain " * 80, code=2) == ""
    assert trainbox(paths, "chat", said="rain " * 80 + "\n", code=1) == ""


def test_a_model_cannot_command_the_terminal_that_shows_its_words(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It may write any language, with spaces and joiners that are no letters."""
    said = "a\x1b]0;owned\x07b\x9b2J\u202fc \N{WOMAN}\N{ZERO WIDTH JOINER}\N{PERSONAL COMPUTER}\td"

    class Server:
        def ask(self, *arguments: object, **named: object) -> Iterator[str]:
            yield said

    monkeypatch.setattr(client, "find_server", lambda *arguments: Server())
    monkeypatch.setattr("sys.stdin", io.StringIO("red\n"))
    asking.generate("red", paths.base)
    with pytest.raises(typer.Exit):
        asking.chat(paths.base)
    generated, talked = capsys.readouterr().out.splitlines()
    assert generated == talked == said.replace("\x1b", "�").replace("\x07", "�").replace("\x9b", "�")
