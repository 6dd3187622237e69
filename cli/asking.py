"""Commands that have a model answer: serve, generate, chat."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import unicodedata
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from cli.terminal import HERE, Base, Settings, complaints, open_base
from config import Config, Paths
from errors import TrainboxError

if TYPE_CHECKING:
    from serving.conversation import Conversation

Model = Annotated[str, typer.Option("--model", "-m", help="current, base, or a version.")]
System = Annotated[str | None, typer.Option(help="A system prompt.")]
MaxTokens = Annotated[int | None, typer.Option("--max-new-tokens", min=1, help="Longest answer, in tokens.")]

Ask = Callable[..., Iterator[str]]


def serve(base: Base = HERE, settings: Settings = None) -> None:
    """Answer over HTTP as OpenAI does, with current, the base, and every version; until interrupted."""
    paths, config = open_base(base, settings)
    paths.create()
    logging.basicConfig(level=config.logging.level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if config.serving.engine == "vllm":
        from serving.vllm import become_vllm

        become_vllm(paths, config, os.environ)
    from serving.inference import InferenceServer

    raise typer.Exit(InferenceServer(paths, config, os.environ).run())


def generate(
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="What to ask.")],
    base: Base = HERE,
    model: Model = "current",
    system: System = None,
    max_new_tokens: MaxTokens = None,
    settings: Settings = None,
) -> None:
    """Ask the current version, any other, or the base model; greedy, so the same prompt has one answer.

    The server answers where one runs; with --set, or without one, the model is loaded for this.
    """
    from serving.client import find_server

    paths, config = open_base(base, settings)
    messages = [{"role": "user", "content": prompt}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    limit = max_new_tokens or config.evaluation.max_new_tokens
    server = None if settings else find_server(paths, config)
    if server is not None:
        text = "".join(server.ask(messages, model, max_tokens=limit))
    else:
        from training.model import load_generator

        (answer,) = load_generator(paths, config, model).generate([messages], max_new_tokens=limit)
        text = answer.text
    sys.stdout.write(f"{_harmless(text)}\n")


def chat(
    base: Base = HERE,
    model: Model = "current",
    system: System = None,
    max_new_tokens: MaxTokens = None,
    settings: Settings = None,
) -> None:
    """Talk with a model: a line is a question, /reset forgets what was said, /quit or Ctrl-D ends."""
    from serving.catalogue import Catalogue
    from serving.conversation import Conversation

    paths, config = open_base(base, settings)
    limit = max_new_tokens or config.evaluation.max_new_tokens
    known = Catalogue(paths, config.model).find(model).base
    longest = config.serving.max_prompt_tokens
    if known.window_tokens is not None:
        longest = max(1, min(longest, known.window_tokens - limit))
    talk = Conversation(system, lambda messages: len(known.template.encode_prompt(messages)), longest)
    with _whoever_answers(paths, config, bool(settings)) as ask:
        has_failed = False
        for question in _questions(talk):
            has_failed |= not _answer(talk, question, lambda messages: ask(messages, model, max_tokens=limit))
    raise typer.Exit(1 if has_failed and not sys.stdin.isatty() else 0)


@contextlib.contextmanager
def _whoever_answers(paths: Paths, config: Config, is_changed: bool) -> Iterator[Ask]:
    """Give the server of this base folder, or the model in this process."""
    from serving.client import find_server

    server = None if is_changed else find_server(paths, config)
    if server is not None:
        yield server.ask
        return
    from serving.local_model import LocalModel

    with contextlib.closing(LocalModel(paths, config)) as local:
        yield local.ask


def _questions(talk: Conversation) -> Iterator[str]:
    """Yield what a person, or a pipe, says; obey what begins with a slash."""
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if line == "/quit":
            return
        if line == "/reset":
            talk.reset()
        elif line.startswith("/"):
            complaints.print(f"{line}: expected /reset or /quit", markup=False)
        elif line:
            yield line


def _answer(talk: Conversation, question: str, ask: Ask) -> bool:
    """Print an answer while it comes and remember it; tell what went wrong and return False."""
    said = ""
    try:
        for text in ask(talk.ask(question)):
            said += text
            sys.stdout.write(_harmless(text))
            sys.stdout.flush()
    except TrainboxError as error:
        complaints.print(f"trainbox: {error}", markup=False)
        return False
    except KeyboardInterrupt:
        complaints.print(" (interrupted)")
    sys.stdout.write("\n")
    sys.stdout.flush()
    talk.remember(question, said)
    return True


def _harmless(text: str) -> str:
    """Return text that cannot command a terminal: a model may say anything."""
    return "".join("\ufffd" if _is_control(sign) else sign for sign in text)


def _is_control(sign: str) -> bool:
    return unicodedata.category(sign) == "Cc" and sign not in "\n\t"
