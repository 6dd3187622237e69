"""Each grader calls the expected answer right and a wrong one wrong, whatever the strings are."""

from __future__ import annotations

import time

import orjson
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from errors import RecordRefused
from evaluation.graders import (
    REGEX_SECONDS,
    Grade,
    GraderSpec,
    check_oracle,
    choose,
    grade,
    spec_of,
    token_f1,
)
from evaluation.syllo.generating import Level, make_puzzles
from evaluation.syllo.wording import answer_of, prompt_of

ANY_TEXT = st.text(max_size=200) | st.text('0123456789.,%-+eE<think>/`{}[]":ABC \n', max_size=80)
QUESTION = "Which is it?\nA) red\nB) blue\nC) as green as grass"
CASES = [
    ("exact", {}, "It is grey.", ["it  is\nGREY", " It is grey. "], ["It is red.", "grey", ""]),
    ("contains", {}, "grey", ["It is grey, I think.", "GREY"], ["greyish", "red", ""]),
    ("contains", {}, "?!", ["what?!"], ["what"]),
    ("regex", {"pattern": r"(?i)gr[ea]y"}, "grey", ["so GRAY", "grey"], ["green", ""]),
    ("number", {}, "The total is 1,234.5", ["1234.5", "1,234.50 €", "3 + 4: 1'234.5"], ["1234", "none", ""]),
    ("number", {}, "45 %", ["0.45", "45", "45%", "It is 45 percent"], ["0.45 %", "4500", "46"]),
    ("number", {}, "0.45", ["45 %", ".45"], ["0.45 %", "45"]),
    ("number", {}, "3,14", ["3.14"], ["2,14", "14", "314"]),
    ("number", {}, "-7", ["−7", "it is -7.0"], ["7"]),
    ("number", {}, "1.234.567", ["1234567", "1,234,567"], ["1.234567"]),
    ("number", {"tolerance": 0.01}, "3.14", ["3.15", "3.13"], ["3.16"]),
    ("number", {"relative_tolerance": 0.1}, "200", ["180", "220"], ["179", "221"]),
    ("json", {}, '{"a": 1, "b": [true]}', ['{"b":[true],"a":1.0}'], ['{"a": 1}', '{"a":1,"b":[1]}']),
    ("json", {}, "[1, 2]", ["Here:\n```json\n[1,2]\n```\nbye"], ["[2, 1]", "[1, 2] or so", "1, 2", ""]),
    ("json_fields", {}, '{"a": 1, "b": {"c": 2}}', ['{"b": {"c": 2}, "a": 1}'], ['{"a": 2}', "{}", "a"]),
    ("f1", {}, "the cat sat on the mat", ["The cat sat on the mat!"], ["dogs bark", ""]),
    ("f1", {}, "今日は晴れです", ["今日は 晴れです。"], ["明日雨"]),
    ("choice", {}, "B", ["(b)", "B) blue", "blue", "The answer is B.", "**B**"], ["A", "A blue one", ""]),
    ("choice", {}, "blue", ["B.", "Blue"], ["C", "green"]),
    ("choice", {"options": ["yes", "no"]}, "A", ["yes", "a"], ["no", "B", "C"]),
]  # fmt: skip


def spec(name: str, parameters: dict[str, object]) -> GraderSpec:
    return spec_of({"name": name, **parameters})


@pytest.mark.parametrize(("name", "parameters", "expected", "right", "wrong"), CASES)
def test_a_grader_tells_right_from_wrong(
    name: str, parameters: dict[str, object], expected: str, right: list[str], wrong: list[str]
) -> None:
    judge = spec(name, parameters)
    for answer in (expected, *right):
        assert (grade(judge, expected, answer, QUESTION).correct, answer) == (True, answer)
        assert grade(judge, expected, answer, QUESTION).score >= judge.threshold
    for answer in wrong:
        assert (grade(judge, expected, answer, QUESTION).correct, answer) == (False, answer)


@pytest.mark.parametrize(("name", "parameters", "expected", "right", "wrong"), CASES)
def test_thoughts_and_a_code_fence_are_not_compared(
    name: str, parameters: dict[str, object], expected: str, right: list[str], wrong: list[str]
) -> None:
    judge = spec(name, parameters)
    for answer in (f"<think>red, {wrong[0]} 99</think>\n{expected}", f"```\n{expected}\n```"):
        assert grade(judge, expected, answer, QUESTION).correct
    assert not grade(judge, expected, f"<think>{expected}</think>{wrong[0]}", QUESTION).correct
    assert not grade(judge, expected, f"<think>{expected}", QUESTION).correct


@pytest.mark.parametrize(("name", "parameters", "expected", "right", "wrong"), CASES)
@settings(max_examples=25)
@given(answer=ANY_TEXT)
def test_any_string_is_an_answer(
    answer: str, name: str, parameters: dict[str, object], expected: str, right: list[str], wrong: list[str]
) -> None:
    judged = grade(spec(name, parameters), expected, answer, QUESTION)
    assert 0 <= judged.score <= 1
    assert not judged.correct or judged.score >= GraderSpec().threshold


@given(expected=st.lists(ANY_TEXT, max_size=4), other=ANY_TEXT)
def test_the_expected_answer_is_right_by_the_grader_chosen_for_its_file(
    expected: list[str], other: str
) -> None:
    chosen, why = choose(expected)
    assert why
    for text in expected:
        check_oracle(chosen, text)
        assert grade(chosen, text, other, other).score <= 1


@given(expected=ANY_TEXT, answer=ANY_TEXT)
def test_words_shared_are_reckoned_both_ways_alike(expected: str, answer: str) -> None:
    assert token_f1(expected, answer) == token_f1(answer, expected)
    assert token_f1(expected, expected) == 1


def test_partly_right_json_scores_by_its_fields() -> None:
    judge = GraderSpec(name="json_fields")
    gold = '{"name": "Ada", "born": {"year": 1815, "city": "London"}}'
    half = grade(judge, gold, '{"name": "Ada", "born": {"year": 1815, "city": "Paris", "day": 10}}')
    assert (half.correct, half.score) == (False, 0.5)


def test_a_catastrophic_pattern_ends_and_is_not_called_right() -> None:
    judge = GraderSpec(name="regex", pattern=r"(a|aa)+$")
    began_at = time.process_time()
    assert not grade(judge, "a", "a" * 3000 + "b").correct
    assert time.process_time() - began_at < 20 * REGEX_SECONDS


@pytest.mark.parametrize(
    ("expected", "name"),
    [
        (["3", "14 %", "-2.5"], "number"),
        (["1,234.5", "1'234", "+2.", "1e5"], "number"),
        (["2024-05-01", "1999-12-01"], "exact"),
        (["1, 2, 3", "9, 9, 3"], "exact"),
        (["1,2,3"], "exact"),
        (["555-0199"], "exact"),
        (["10-20"], "exact"),
        (["A", "(B)", "c) "], "exact"),
        (["A", "(B)", "C."], "choice"),
        (['{"a": 1}', '```json\n{"b": 2}\n```'], "json_fields"),
        (["[1]", "[]"], "json"),
        (['{"solutions": [], "inventory_check": {}}'], "syllo"),
        (["refund", "Technical problem"], "exact"),
        (["refund", "a long explanation of what happened and why"], "f1"),
        (["3", "three"], "exact"),
        ([], "exact"),
    ],
)
def test_the_answers_of_a_file_choose_its_grader(expected: list[str], name: str) -> None:
    assert choose(expected)[0].name == name


def test_what_a_record_names_is_read() -> None:
    assert spec_of("contains") == GraderSpec(name="contains")
    assert spec_of({"name": "number", "tolerance": 1}) == GraderSpec(name="number", tolerance=1)


@pytest.mark.parametrize(
    ("value", "field", "part"),
    [
        (3, "grader", "3"),
        ({"pattern": "x"}, "grader", "pattern"),
        ("exakt", "grader.name", "did you mean 'exact'?"),
        ({"name": ["exact"]}, "grader.name", "one of exact"),
        ("regex", "grader", "needs a 'pattern'"),
        ({"name": "regex", "pattern": "(a"}, "grader.pattern", "no regular expression"),
        ({"name": "regex", "pattern": "(((a{20}){20}){20})"}, "grader.pattern", "multiply"),
        ({"name": "regex", "pattern": "(" * 40 + "a" + "+)" * 40}, "grader.pattern", "opening brackets"),
        ({"name": "regex", "pattern": "a(?R)?b"}, "grader.pattern", "calls itself"),
        ({"name": "regex", "pattern": "a" * 201}, "grader.pattern", "201 characters"),
        ({"name": "number", "tolerance": -1}, "grader.tolerance", "greater than or equal to 0"),
        ({"name": "exact", "tolerance": 1}, "grader", "no parameter of the grader 'exact'"),
        ({"name": "exact", "strict": True}, "grader.strict", "not permitted"),
    ],
)
def test_a_grader_that_cannot_be_is_refused_with_the_reason(value: object, field: str, part: str) -> None:
    with pytest.raises(RecordRefused) as refused:
        spec_of(value)
    assert refused.value.field == field
    assert part in str(refused.value)


@given(
    value=st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.dictionaries(st.text(), inner))
)
def test_any_value_is_read_or_refused(value: object) -> None:
    assume(not isinstance(value, str) or value not in ("exact", "f1"))
    with pytest.raises(RecordRefused):
        spec_of(value)


def test_a_grader_by_which_the_expected_answer_is_wrong_is_refused() -> None:
    with pytest.raises(RecordRefused, match="wrong by the grader 'number'"):
        check_oracle(GraderSpec(name="number"), "plenty")
    with pytest.raises(RecordRefused, match="wrong by the grader 'regex'"):
        check_oracle(GraderSpec(name="regex", pattern="^x"), "plenty")


@pytest.mark.parametrize("level", ["easy", "medium", "hard"])
def test_a_puzzle_is_judged_by_its_words_in_any_order_of_keys_and_tiles(level: Level) -> None:
    (puzzle,) = make_puzzles(1, level, seed=1)
    gold, question = answer_of(puzzle), prompt_of(puzzle)
    chosen, _ = choose([gold])
    assert chosen == GraderSpec(name="syllo")
    other_way_round = orjson.loads(gold)
    other_way_round["inventory_check"]["unused_tiles"].reverse()
    for answer in (gold, f"<think>hm</think>```json\n{gold}\n```", orjson.dumps(other_way_round).decode()):
        assert grade(chosen, gold, answer, question) == Grade(correct=True, score=1.0)
    one_word_wrong = orjson.loads(gold)
    one_word_wrong["solutions"][0] |= {"answer": "WRONG", "syllables": ["wrong"]}
    partly = grade(chosen, gold, orjson.dumps(one_word_wrong).decode(), question)
    assert not partly.correct
    assert partly.score == pytest.approx(1 - 1 / len(puzzle.words))
    assert grade(chosen, gold, "I do not know.", question) == Grade(correct=False, score=0.0)


@given(
    value=st.recursive(
        st.none() | st.integers(-3, 3) | st.text("ab\u0000", max_size=3),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "solutions",
                        "inventory_check",
                        "usage",
                        "answer",
                        "syllables",
                        "ans_num",
                        "unused_tiles",
                    ]
                ),
                inner,
            )
        ),
        max_leaves=12,
    ),
    answer=ANY_TEXT,
)
def test_what_only_looks_like_a_puzzle_is_judged_all_the_same(value: object, answer: str) -> None:
    gold = orjson.dumps({"solutions": value, "inventory_check": value}).decode()
    chosen, _ = choose([gold])
    check_oracle(chosen, gold)
    assert 0 <= grade(chosen, gold, answer).score <= 1
    assert 0 <= grade(chosen, answer, gold).score <= 1
