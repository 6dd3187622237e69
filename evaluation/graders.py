"""Whether an answer is right: what is compared, and how.

Answers are compared without think blocks and the code fence around them. Any string is a valid answer: a
grader never raises and never takes long. What is expected is always right when it is answered word for word.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, Literal, get_args

import regex
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from errors import RecordRefused
from evaluation import pattern_limits
from evaluation.answer_text import bare, normalised, words
from evaluation.choice_answers import options_in, same_choice
from evaluation.json_answers import NotJson, json_in, same_json, share_of_fields
from evaluation.number_answers import is_number, number_in, same_number
from evaluation.syllo.puzzle import Puzzle
from evaluation.syllo.verification import verify

GraderName = Literal["exact", "contains", "regex", "number", "json", "json_fields", "f1", "choice", "syllo"]
REGEX_SECONDS = 0.5
LABEL_WORDS = 6
"""Answers no longer than this are compared as they are; longer ones by their words."""

_PARAMETERS: dict[str, frozenset[str]] = {
    "regex": frozenset(["pattern"]),
    "number": frozenset(["tolerance", "relative_tolerance"]),
    "f1": frozenset(["threshold"]),
    "choice": frozenset(["options"]),
}


class GraderSpec(BaseModel):
    """Which grader judges a record, with the parameters that belong to it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: GraderName = "exact"
    pattern: str | None = None
    """Of ``regex``: found anywhere in a right answer."""
    tolerance: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Of ``number``: how far from the expected number a right one may be."""
    relative_tolerance: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Of ``number``: the same as a share of the expected number."""
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Of ``f1``: the token F1 from which an answer is right."""
    options: tuple[str, ...] = ()
    """Of ``choice``: the texts of A, B, C …; without them, those that the question lists."""

    @field_validator("pattern")
    @classmethod
    def _check_pattern(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            pattern_limits.check(pattern)
        return pattern

    @model_validator(mode="after")
    def _check_parameters(self) -> GraderSpec:
        strange = self.model_fields_set - {"name"} - _PARAMETERS.get(self.name, frozenset())
        if strange:
            raise ValueError(f"{sorted(strange)[0]!r} is no parameter of the grader {self.name!r}")
        if self.name == "regex" and self.pattern is None:
            raise ValueError("the grader 'regex' needs a 'pattern'")
        return self


class Grade(BaseModel):
    """How right one answer is."""

    model_config = ConfigDict(frozen=True)

    correct: bool
    score: float
    """From 0 to 1: 1 is right, between them is partly right."""


def grade(spec: GraderSpec, expected: str, answer: str, question: str = "") -> Grade:
    """Judge an answer; any string is a valid answer.

    `question` is the turn that was answered: some graders find there what may be answered at all.
    """
    return _GRADERS[spec.name](spec, expected, answer, question)


def token_f1(expected: str, answer: str) -> float:
    """Return the harmonic mean of precision and recall over words, from 0 to 1."""
    gold, given = Counter(words(bare(expected))), Counter(words(bare(answer)))
    if not gold or not given:
        return float(gold == given and normalised(bare(expected)) == normalised(bare(answer)))
    shared = sum((gold & given).values())
    return 2 * shared / (gold.total() + given.total())


def spec_of(value: object) -> GraderSpec:
    """Read the ``grader`` of a record: a name, or an object with a name and parameters.

    Raises RecordRefused when it is neither.
    """
    if isinstance(value, str):
        value = {"name": value}
    names = get_args(GraderName)
    if not isinstance(value, dict) or "name" not in value:
        expected = "the name of a grader, or an object with a name"
        raise RecordRefused("grader", _shown(value), expected, f"write one of {', '.join(names)}")
    if value["name"] not in names:
        near = get_close_matches(str(value["name"]), names, n=1)
        remedy = f"did you mean {near[0]!r}?" if near else "leave it out, or choose one of these"
        raise RecordRefused("grader.name", _shown(value["name"]), f"one of {', '.join(names)}", remedy)
    try:
        return GraderSpec.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(["grader", *map(str, first["loc"])])
        message = first["msg"].removeprefix("Value error, ")
        raise RecordRefused(
            field, message, "parameters of that grader", "correct it or leave it out"
        ) from None


def check_oracle(spec: GraderSpec, expected: str, question: str = "") -> None:
    """Raise RecordRefused when not even the expected answer is right by a grader."""
    if not grade(spec, expected, expected, question).correct:
        found = f"the expected answer {_shown(expected)}, which is wrong by the grader {spec.name!r}"
        remedy = "correct the answer, or choose another grader"
        raise RecordRefused("grader", found, "a grader by which it is right", remedy)


def choose(expected: Sequence[str]) -> tuple[GraderSpec, str]:
    """Return the grader that suits all expected answers of a file, and why."""
    texts = [bare(text) for text in expected]
    if not texts:
        return GraderSpec(name="exact"), "there are no answers to judge by"
    for name, fits, what in _KINDS:
        if all(map(fits, texts)):
            return GraderSpec(name=name), f"each of the {len(texts)} expected answers is {what}"
    longest = max(len(words(text)) for text in texts)
    if longest <= LABEL_WORDS:
        return GraderSpec(name="exact"), f"no expected answer is longer than {_count(longest)}"
    return GraderSpec(name="f1"), f"expected answers are texts of up to {_count(longest)}"


def _count(number: int) -> str:
    return f"{number} word{'' if number == 1 else 's'}"


Judge = Callable[[GraderSpec, str, str, str], Grade]


def _whether(correct: bool) -> Grade:
    return Grade(correct=correct, score=float(correct))


def _exact(spec: GraderSpec, expected: str, answer: str, question: str) -> Grade:
    return _whether(normalised(bare(expected)) == normalised(bare(answer)))


def _contains(spec: GraderSpec, expected: str, answer: str, question: str) -> Grade:
    gold, given = words(bare(expected)), words(bare(answer))
    if not gold:
        return _whether(normalised(bare(expected)) in normalised(bare(answer)))
    return _whether(f" {' '.join(gold)} " in f" {' '.join(given)} ")


def _regex(spec: GraderSpec, expected: str, answer: str, question: str) -> Grade:
    assert spec.pattern is not None
    try:
        return _whether(bool(regex.search(spec.pattern, bare(answer), timeout=REGEX_SECONDS)))
    except TimeoutError:
        return _whether(False)


def _number(spec: GraderSpec, expected: str, answer: str, question: str) -> Grade:
    gold, given = number_in(bare(expected)), number_in(bare(answer))
    if gold is None or given is None:
        return _whether(False)
    return _whether(same_number(gold, given, spec.tolerance, spec.relative_tolerance))


def _json(spec: GraderSpec, expected: str, answer: str, question: str) -> Grade:
    try:
        return _whether(same_json(json_in(expected), json_in(answer)))
    except NotJson:
        return _whether(False)


def _json_fields(spec: GraderSpec, expected: str, answer: str, question: str) -> Grade:
    try:
        share = share_of_fields(json_in(expected), json_in(answer))
    except NotJson:
        return _whether(False)
    return Grade(correct=share == 1, score=share)


def _f1(spec: GraderSpec, expected: str, answer: str, question: str) -> Grade:
    score = token_f1(expected, answer)
    return Grade(correct=score >= spec.threshold, score=score)


def _choice(spec: GraderSpec, expected: str, answer: str, question: str) -> Grade:
    options = {chr(ord("A") + number): normalised(text) for number, text in enumerate(spec.options)}
    return _whether(same_choice(bare(expected), bare(answer), options or options_in(question)))


def _syllo(spec: GraderSpec, expected: str, answer: str, question: str) -> Grade:
    try:
        puzzle = Puzzle.from_answer(bare(expected))
    except ValueError:  # A puzzle of other makers, whose answers say less
        return _json(spec, expected, answer, question)
    found = verify(puzzle, answer)
    return Grade(correct=found.all_words, score=found.words_correct / max(1, found.words))


_GRADERS: dict[GraderName, Judge] = {
    "exact": _exact,
    "contains": _contains,
    "regex": _regex,
    "number": _number,
    "json": _json,
    "json_fields": _json_fields,
    "f1": _f1,
    "choice": _choice,
    "syllo": _syllo,
}


def _value_of(text: str) -> Any:
    try:
        return json_in(text)
    except NotJson:
        return None


def _is_puzzle(text: str) -> bool:
    value = _value_of(text)
    return isinstance(value, dict) and {"solutions", "inventory_check"} <= value.keys()


def _is_object(text: str) -> bool:
    return isinstance(_value_of(text), dict)


def _is_list(text: str) -> bool:
    return isinstance(_value_of(text), list)


def _is_letter(text: str) -> bool:
    return text.strip("().:[] ") in set("ABCDEFGH")


_KINDS: tuple[tuple[GraderName, Callable[[str], bool], str], ...] = (
    ("syllo", _is_puzzle, "the solution of a syllable puzzle"),
    ("json_fields", _is_object, "a JSON object"),
    ("json", _is_list, "a JSON list"),
    ("number", is_number, "a number"),
    ("choice", _is_letter, "the letter of an option"),
)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
