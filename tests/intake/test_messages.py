"""Turns in any common spelling: roles, contents, tool calls and their order."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from errors import RecordRefused
from intake.formats import normalise

USER = {"role": "user", "content": "Weather?"}
ASSISTANT = {"role": "assistant", "content": "Rain."}
SYSTEM = {"role": "system", "content": "Be brief."}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bonn"}}}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "rain"}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]


def turns(messages: Any, **beside: Any) -> Any:
    return normalise({"messages": messages, **beside}, "messages", 1).messages


def refusal(messages: Any, **beside: Any) -> RecordRefused:
    with pytest.raises(RecordRefused) as caught:
        turns(messages, **beside)
    return caught.value


def test_sharegpt_roles_become_ours() -> None:
    spoken = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "Weather?"},
        {"from": "function_call", "value": orjson.dumps(CALL["function"]).decode()},
        {"from": "observation", "value": "rain"},
        {"from": "gpt", "value": "Rain."},
    ]
    assert turns(spoken) == [SYSTEM, USER, CALLING, RESULT, ASSISTANT]


@pytest.mark.parametrize(
    "calls",
    [
        {"tool_calls": [CALL], "content": None},
        {"tool_calls": [CALL]},
        {"tool_calls": [CALL["function"]], "content": ""},
        {"tool_calls": [{"function": {"name": "weather", "arguments": '{"city": "Bonn"}'}}], "content": []},
        {"function_call": {"name": "weather", "arguments": '{"city": "Bonn"}'}, "content": None},
    ],
)
def test_every_spelling_of_a_tool_call_becomes_one(calls: dict[str, Any]) -> None:
    assert turns([USER, {"role": "assistant", **calls}, RESULT, ASSISTANT]) == [
        USER,
        CALLING,
        RESULT,
        ASSISTANT,
    ]


def test_ids_and_names_of_calls_are_kept_and_nulls_are_not() -> None:
    calling = {"role": "assistant", "content": None, "tool_calls": [{**CALL, "id": "c1"}], "name": None}
    result = {**RESULT, "tool_call_id": "c1", "name": "weather"}
    assert turns([USER, calling, result]) == [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [{**CALL, "id": "c1"}]},
        {"role": "tool", "content": "rain", "tool_call_id": "c1", "name": "weather"},
    ]


def test_a_call_without_arguments_has_none() -> None:
    (_, calling) = turns([USER, {"role": "assistant", "tool_calls": [{"name": "now"}]}])
    assert calling["tool_calls"][0]["function"] == {"name": "now", "arguments": {}}


@pytest.mark.parametrize("tools", [TOOLS, orjson.dumps(TOOLS).decode()])
def test_tools_are_read_from_a_list_or_its_json(tools: Any) -> None:
    record = normalise({"messages": [USER, ASSISTANT], "tools": tools}, "messages", 1)
    assert record.tools == TOOLS


@pytest.mark.parametrize("tools", [None, [], ""])
def test_no_tools_are_no_tools(tools: Any) -> None:
    assert normalise({"messages": [USER, ASSISTANT], "tools": tools}, "messages", 1).tools is None


@pytest.mark.parametrize(
    ("messages", "field", "found"),
    [
        ("hello", "messages", 'the text "hello"'),
        ([], "messages", "an empty list"),
        (["hello"], "messages[0]", 'the text "hello"'),
        ([{"content": "x"}], "messages[0].role", "no role in an object with the key 'content'"),
        ([{}], "messages[0].role", "no role in an empty object"),
        ([{"role": "User", "content": "x"}], "messages[0].role", 'the text "User"'),
        ([{"role": 3, "content": "x"}], "messages[0].role", "the number 3"),
        ([{"role": "user"}], "messages[0].content", "nothing"),
        ([{"role": "user", "content": None}], "messages[0].content", "null"),
        ([{"role": "user", "content": 596}], "messages[0].content", "the number 596"),
        ([{"role": "user", "content": {"a": 1}}], "messages[0].content", "an object with the key 'a'"),
        ([{"role": "user", "content": ""}], "messages[0].content", "empty text"),
        ([USER, {"role": "assistant", "content": " \n"}], "messages[1].content", "empty text"),
        ([{"role": "user", "content": "a\x00b"}], "messages[0].content", "the character \\u0000"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content[0]", "a part of type"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0]", "an object with"),
        ([{"role": "user", "content": ["x"]}], "messages[0].content[0]", 'the text "x"'),
        ([ASSISTANT, USER], "messages[0].role", "assistant"),
        ([SYSTEM, ASSISTANT], "messages[1].role", "assistant"),
        ([USER, SYSTEM, ASSISTANT], "messages[1].role", "system after the first turn"),
        ([SYSTEM, SYSTEM, USER, ASSISTANT], "messages[1].role", "system after the first turn"),
        ([USER], "messages", "no assistant turn"),
        ([RESULT, ASSISTANT], "messages[0].role", "tool"),
        ([USER, RESULT, ASSISTANT], "messages[1].role", "tool"),
        ([USER, CALLING, USER, ASSISTANT], "messages[2].role", "no result after a tool call"),
        ([{**USER, "tool_calls": [CALL]}], "messages[0].tool_calls", "a list of 1"),
        ([USER, {**CALLING, "tool_calls": "weather"}], "messages[1].tool_calls", 'the text "weather"'),
        ([USER, {**CALLING, "tool_calls": [{"id": "1"}]}], "messages[1].tool_calls[0]", "an object with"),
        (
            [USER, {**CALLING, "tool_calls": [{"name": "f", "arguments": "{"}]}],
            "messages[1].tool_calls[0].arguments",
            "only {",
        ),
        (
            [USER, {**CALLING, "tool_calls": [{"name": "f", "arguments": [1]}]}],
            "messages[1].tool_calls[0].arguments",
            "a list of 1",
        ),
    ],
)
def test_a_wrong_turn_is_refused_where_it_stands(messages: Any, field: str, found: str) -> None:
    problem = refusal(messages)
    assert problem.field == field
    assert problem.found.startswith(found)
    assert problem.expected and problem.remedy


@pytest.mark.parametrize(
    ("tools", "field"),
    [({"name": "f"}, "tools"), ("nonsense", "tools"), ([{"type": "function"}], "tools[0]")],
)
def test_tools_without_names_are_refused(tools: Any, field: str) -> None:
    assert refusal([USER, ASSISTANT], tools=tools).field == field


def test_a_call_may_end_a_conversation_and_results_may_follow_each_other() -> None:
    assert turns([USER, CALLING]) == [USER, CALLING]
    assert turns([USER, CALLING, RESULT, RESULT, ASSISTANT])
