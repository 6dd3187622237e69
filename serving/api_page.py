"""The API's own page: its OpenAPI document as plain HTML, which needs no network and no script."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from fastapi.responses import HTMLResponse

from serving.access import content_policy

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
code { font-family: ui-monospace, monospace; }
section { border-top: 1px solid; padding: .5rem 0; }
table { border-collapse: collapse; }
th, td { text-align: left; padding: .15rem 1rem .15rem 0; vertical-align: top; }
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
<p>{description} The same for programs: <a href="/openapi.json">openapi.json</a>.</p>
"""


def api_page(document: Mapping[str, Any]) -> HTMLResponse:
    """Return the page of an OpenAPI document; no style but the one that it brings along applies to it."""
    policy = content_policy(f"'sha256-{_STYLE_HASH}'")
    return HTMLResponse(_page(document), headers={"content-security-policy": policy})


def _page(document: Mapping[str, Any]) -> str:
    info = document["info"]
    words = {name: escape(info.get(name, "")) for name in ("title", "description")}
    head = _HEAD.format(style=_STYLE, **words)
    routes = "".join(
        _route(method, path, operation)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    )
    shapes = "".join(_shape(name, shape) for name, shape in document["components"]["schemas"].items())
    return f"{head}{routes}<h2>Documents</h2>\n{shapes}</main>\n</body>\n</html>\n"


def _route(method: str, path: str, operation: Mapping[str, Any]) -> str:
    parameters = _table(
        (parameter["name"], _type(parameter["schema"]), parameter.get("description", ""))
        for parameter in operation.get("parameters", ())
    )
    answers = _table(
        (status, ", ".join(_answer_types(answer)), answer.get("description", ""))
        for status, answer in operation["responses"].items()
    )
    return (
        f"<section><h2><code>{method.upper()} {escape(path)}</code></h2>\n"
        f"<p>{escape(operation.get('description', ''))}</p>\n{parameters}{answers}</section>\n"
    )


def _shape(name: str, shape: Mapping[str, Any]) -> str:
    rows = _table(
        (field, _type(schema), schema.get("description", ""))
        for field, schema in shape.get("properties", {}).items()
    )
    return f'<section id="{escape(name)}"><h3>{escape(name)}</h3>\n{rows}</section>\n'


def _answer_types(answer: Mapping[str, Any]) -> Iterator[str]:
    for media_type, content in answer.get("content", {}).items():
        yield _type(content["schema"]) if content.get("schema") else escape(media_type)


def _type(schema: Mapping[str, Any]) -> str:
    """Say in a few words what a value is."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    if "enum" in schema:
        return escape(", ".join(str(value) for value in schema["enum"]))
    if schema.get("type") == "array" and "items" in schema:
        return f"list of {_type(schema['items'])}"
    return escape(str(schema.get("type", "anything")))


def _table(rows: Iterator[tuple[str, str, str]]) -> str:
    """Draw rows of a name, a type that is HTML already, and a text."""
    lines = [
        f"<tr><td><code>{escape(name)}</code></td><td>{kind}</td><td>{escape(text)}</td></tr>\n"
        for name, kind, text in rows
    ]
    return f"<table>\n{''.join(lines)}</table>\n" if lines else ""
