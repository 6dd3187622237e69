"""Chat templates are programs from elsewhere: compiled in a sandbox, with the names they may count on."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import threading
from collections.abc import Iterator
from datetime import datetime
from types import FrameType
from typing import Any, NoReturn

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.nodes
import jinja2.runtime
import jinja2.sandbox

MAX_RENDER_SECONDS = 10.0
"""Processor time for one conversation; an ordinary one takes a ten-thousandth of it."""
MAX_REPEATED = 1_000_000
"""Longest text or list that a template may make by multiplying."""
MAX_POWER = 64


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The sandbox, in which multiplying cannot fill the memory either."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        size = max((len(side) for side in (left, right) if isinstance(side, str | list | tuple)), default=0)
        times = max((side for side in (left, right) if isinstance(side, int)), default=0)
        is_excess = times > MAX_POWER if operator == "**" else size * times > MAX_REPEATED
        if is_excess:
            raise jinja2.exceptions.SecurityError(f"{operator} with operands this large is not allowed")
        return super().call_binop(context, operator, left, right)


class _Generation(jinja2.ext.Extension):
    """Accept ``{% generation %}`` blocks; their body is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012 - jinja's own declaration

    def parse(self, parser: Any) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        body: list[jinja2.nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return body


def compile_template(source: str) -> jinja2.Template:
    """Compile a chat template; raise jinja2.TemplateSyntaxError when it cannot be parsed."""
    return _environment().from_string(source)


def render(template: jinja2.Template, values: dict[str, Any]) -> str:
    """Render a compiled template; raise jinja2.TemplateError also when it takes too long or too much."""
    try:
        with _limited_time():
            return template.render(values)
    except (MemoryError, RecursionError) as error:
        raise jinja2.TemplateError(f"it needs too much memory ({type(error).__name__})") from error


@contextlib.contextmanager
def _limited_time() -> Iterator[None]:
    """Interrupt what takes too long; only the main thread, where records are prepared, can be interrupted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def give_up(number: int, frame: FrameType | None) -> NoReturn:
        raise jinja2.TemplateError(f"it takes longer than {MAX_RENDER_SECONDS:g} s")

    before = signal.signal(signal.SIGVTALRM, give_up)
    signal.setitimer(signal.ITIMER_VIRTUAL, MAX_RENDER_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def distinguishing_constants(source: str) -> tuple[str, ...]:
    """Return the marker-like constants by which a template could single out a content.

    A constant that contains another one of them is left out: whoever looks for the shorter finds both.
    """
    constants = {
        node.value
        for node in _environment().parse(source).find_all(jinja2.nodes.Const)
        if isinstance(node.value, str) and re.search(r"[<>\[\]|]", node.value)
    }
    return tuple(sorted(one for one in constants if not any(other in one for other in constants - {one})))


def _environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda pattern: datetime.now().astimezone().strftime(pattern)
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> str:
    raise jinja2.TemplateError(message)
