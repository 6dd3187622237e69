"""The turns of a conversation: roles, contents, tool calls and their order, from any common spelling."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NoReturn

from chat_template import Message
from errors import RecordRefused
from intake.display import describe
from intake.strict_json import parse_value

MESSAGE_LIST = "a list of {role, content}"
_PLAIN_ROLES = frozenset(("system", "user", "assistant"))
_ROLES = {role: role for role in (*_PLAIN_ROLES, "tool")} | {
    "human": "user",
    "gpt": "assistant",
    "function_call": "assistant",
    "function": "tool",
    "observation": "tool",
}
_KNOWN_KEYS = frozenset(
    ("role", "content", "from", "value", "tool_calls", "name", "tool_call_id", "function_call")
)
_EXPECTED_ROLES = "system, user, assistant or tool (or human, gpt, function_call, observation)"


def parse_messages(value: Any, field: str) -> list[Message]:
    """Read a list of turns as ``{role, content}`` or ``{from, value}``; `field` names it in refusals."""
    if type(value) is not list:
        remedy = 'wrap it as [{"role": "user", "content": …}, {"role": "assistant", "content": …}]'
        raise RecordRefused(field, describe(value), MESSAGE_LIST, remedy)
    if not value:
        raise RecordRefused(field, "an empty list", MESSAGE_LIST, "add the turns or remove the record")
    return [
        item if _is_plain(item) else _parse_message(item, f"{field}[{index}]")
        for index, item in enumerate(value)
    ]


def as_turns(value: Any, field: str, role: str) -> list[Message]:
    """Read a field that holds either a text, which becomes one turn of `role`, or a list of turns."""
    if type(value) is list and not _is_content_parts(value):
        return parse_messages(value, field)
    return [{"role": role, "content": require_text(value, field)}]


def require_text(value: Any, field: str) -> str:
    """Return the text of a content, its parts joined; raise RecordRefused when there is none."""
    if type(value) is list:
        value = "".join(_text_of_part(part, f"{field}[{index}]") for index, part in enumerate(value))
    if type(value) is not str:
        remedy = (
            "write it in quotes"
            if type(value) in (int, float, bool)
            else "write the text or remove the record"
        )
        raise RecordRefused(field, describe(value), "text", remedy)
    if not value or value.isspace():
        raise RecordRefused(field, "empty text", "some text", "fill it in or remove the record")
    if "\x00" in value:
        raise RecordRefused(field, "the character \\u0000", "text without it", "remove that character")
    return value


def check_turns(messages: Sequence[Message], field: str) -> None:
    """Refuse a conversation whose turns cannot follow each other, or that has no answer to learn from."""
    fault = _find_fault(tuple([(message["role"], "tool_calls" in message) for message in messages]))
    if fault is not None:
        index, problem = fault
        raise RecordRefused(field if index is None else f"{field}[{index}].role", *problem)


Problem = tuple[str, str, str]
_ASSISTANT_FIRST = ("assistant", "a user turn before it", "begin with the user's turn")
_LATE_SYSTEM = ("system after the first turn", "system first or not at all", "move it to the front")
_TOOL_WITHOUT_CALL = ("tool", "a tool result after the assistant's call", "add the call before it")
_OPEN_CALL = ("no result after a tool call", "a tool turn", "add the result after the call")
_NO_ANSWER = ("no assistant turn", "at least one to learn from", "add the answer, or remove the record")
_WRONG_ORDER: dict[tuple[str, str], Problem] = {
    ("start", "assistant"): _ASSISTANT_FIRST,
    ("system", "assistant"): _ASSISTANT_FIRST,
    ("start", "tool"): _TOOL_WITHOUT_CALL,
    ("system", "tool"): _TOOL_WITHOUT_CALL,
    ("user", "tool"): _TOOL_WITHOUT_CALL,
    ("system", "system"): _LATE_SYSTEM,
    ("user", "system"): _LATE_SYSTEM,
    ("assistant", "system"): _LATE_SYSTEM,
    ("tool", "system"): _LATE_SYSTEM,
}


@lru_cache(maxsize=1024)
def _find_fault(turns: tuple[tuple[str, bool], ...]) -> tuple[int | None, Problem] | None:
    """Return the first wrong turn and what is wrong with it; `turns` are roles, and whether they call tools.

    Conversations share few orders of turns, so nearly every answer comes from the cache.
    """
    previous, is_call_open = "start", False
    for index, (role, calls_tools) in enumerate(turns):
        problem = _OPEN_CALL if is_call_open and role != "tool" else _WRONG_ORDER.get((previous, role))
        if problem is not None:
            return index, problem
        previous, is_call_open = role, calls_tools
    return None if any(role == "assistant" for role, _ in turns) else (None, _NO_ANSWER)


def answered_by(prompt: Sequence[Message], answer: list[Message], field: str) -> list[Message]:
    """Return the turns of `answer` that follow `prompt`, which it may or may not repeat."""
    if answer[: len(prompt)] == list(prompt):
        answer = answer[len(prompt) :]
    elif prompt[0]["role"] == "system" and answer[: len(prompt) - 1] == list(prompt[1:]):
        answer = answer[len(prompt) - 1 :]
    if not answer or answer[0]["role"] not in ("assistant", "tool"):
        found = f"a {answer[0]['role']} turn" if answer else "nothing after the prompt"
        remedy = "give the answer alone, or the very turns of 'prompt' and then the answer"
        raise RecordRefused(field, found, "the assistant's answer to 'prompt'", remedy)
    return answer


def parse_tools(value: Any) -> list[Any] | None:
    """Read the tools that a conversation may call: a list of function descriptions, or its JSON as text."""
    if value in (None, "", []):
        return None
    if type(value) is str:
        value = _parse_json_text(value, "tools")
    if type(value) is not list:
        raise RecordRefused("tools", describe(value), "a list of functions", "wrap it in [ ]")
    for index, tool in enumerate(value):
        function = tool.get("function", tool) if type(tool) is dict else None
        if type(function) is not dict or type(function.get("name")) is not str:
            raise RecordRefused(
                f"tools[{index}]",
                describe(tool),
                "a function with a name",
                'write {"type": "function", "function": {"name": …, "parameters": …}}',
            )
    return value


def unused_message_keys(messages: Sequence[Any]) -> set[str]:
    """Return the keys of raw turns that nothing here reads."""
    longer = [message for message in messages if type(message) is dict and len(message) > 2]
    return {key for message in longer for key in message} - _KNOWN_KEYS


def _is_plain(item: Any) -> bool:
    """Tell whether a turn already is what it shall become; true for nearly all, so it has to be fast."""
    if type(item) is not dict or len(item) != 2:
        return False
    content = item.get("content")
    return (
        type(content) is str
        and item.get("role") in _PLAIN_ROLES
        and bool(content)
        and not content.isspace()
        and "\x00" not in content
    )


def _parse_message(item: Any, field: str) -> Message:
    if type(item) is not dict:
        remedy = 'write {"role": "user", "content": …}'
        raise RecordRefused(field, describe(item), "an object with role and content", remedy)
    role_key, content_key = (
        ("from", "value") if "from" in item and "role" not in item else ("role", "content")
    )
    spelled = item.get(role_key)
    role = _ROLES.get(spelled) if type(spelled) is str else None
    if role is None:
        found = describe(spelled) if role_key in item else f"no role in {describe(item)}"
        raise RecordRefused(f"{field}.{role_key}", found, _EXPECTED_ROLES, "rename the role")
    if spelled == "function_call":
        calls = _parse_json_text(item.get(content_key), f"{field}.{content_key}")
        calls = _parse_calls(calls if type(calls) is list else [calls], f"{field}.{content_key}")
        return {"role": role, "content": "", "tool_calls": calls}
    return _with_extras(item, role, content_key, field)


def _with_extras(item: dict[str, Any], role: str, content_key: str, field: str) -> Message:
    message: Message = {"role": role, "content": ""}
    calls = item.get("tool_calls")
    if calls is None and item.get("function_call") is not None:
        calls = [item["function_call"]]
    if calls not in (None, []):
        if role != "assistant" or type(calls) is not list:
            remedy = "put a list of calls into an assistant turn"
            raise RecordRefused(f"{field}.tool_calls", describe(calls), "calls of the assistant", remedy)
        message["tool_calls"] = _parse_calls(calls, f"{field}.tool_calls")
    content = item.get(content_key)
    if content_key not in item and "tool_calls" not in message:
        raise RecordRefused(f"{field}.{content_key}", "nothing", "text", "add it or remove the record")
    if "tool_calls" not in message or content not in (None, "", []):
        message["content"] = require_text(content, f"{field}.{content_key}")
    for key in ("name", "tool_call_id"):
        if item.get(key) is not None:
            message[key] = require_text(item[key], f"{field}.{key}")
    return message


def _parse_calls(calls: list[Any], field: str) -> list[dict[str, Any]]:
    return [_parse_call(call, f"{field}[{index}]") for index, call in enumerate(calls)]


def _parse_call(call: Any, field: str) -> dict[str, Any]:
    """Read one call; its arguments become an object, since templates would quote a text once more."""
    function = call.get("function", call) if type(call) is dict else None
    if type(function) is not dict or type(function.get("name")) is not str:
        remedy = 'write {"type": "function", "function": {"name": …, "arguments": {…}}}'
        raise RecordRefused(field, describe(call), "a call with the name of a function", remedy)
    arguments = function.get("arguments")
    if type(arguments) is str:
        arguments = _parse_json_text(arguments, f"{field}.arguments")
    if arguments is None:
        arguments = {}
    if type(arguments) is not dict:
        raise RecordRefused(f"{field}.arguments", describe(arguments), "an object", "write {name: value, …}")
    parsed: dict[str, Any] = {
        "type": "function",
        "function": {"name": function["name"], "arguments": arguments},
    }
    if type(call.get("id")) is str:
        parsed["id"] = call["id"]
    return parsed


def _parse_json_text(value: Any, field: str) -> Any:
    if type(value) is not str:
        return value
    try:
        return parse_value(value.encode("utf-8"))
    except RecordRefused as error:
        raise RecordRefused(field, error.found, "JSON", error.remedy) from None


def _is_content_parts(value: list[Any]) -> bool:
    return bool(value) and all(type(item) is dict and "type" in item and "role" not in item for item in value)


def _text_of_part(part: Any, field: str) -> str:
    if type(part) is dict and part.get("type") == "text" and type(part.get("text")) is str:
        return str(part["text"])
    if type(part) is dict and type(part.get("type")) is str and part["type"] != "text":
        _refuse_part(field, f"a part of type {describe(part['type'])}")
    _refuse_part(field, describe(part))


def _refuse_part(field: str, found: str) -> NoReturn:
    remedy = "this trainer learns from text; leave other parts out"
    raise RecordRefused(field, found, 'text parts: {"type": "text", "text": …}', remedy)
