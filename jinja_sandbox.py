"""Chat templates are programs from elsewhere: compiled in a sandbox, with the names they may count on."""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox


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


def _environment() -> jinja2.Environment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
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
