"""Whole files are judged: counts, limits, the held-out split, the plan, and what a run is left with."""

from __future__ import annotations

import gc
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chat_template import ChatTemplate
from config import DataConfig, RunPaths
from intake.formats import KNOWN_KEYS, Record
from intake.reading import SUFFIXES
from intake.report import REFUSALS_IN_REPORT, ReportCard
from intake.validation import PlanInputs, check_file

Checker = Callable[..., ReportCard]
ALL_BAD = DataConfig(max_bad_fraction=1)


def chat(question: Any, answer: Any = "yes") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def chats(count: int) -> list[dict[str, Any]]:
    return [chat(f"question {number}") for number in range(count)]


def adds_up(card: ReportCard) -> bool:
    return card.records_total == (
        card.accepted + card.refused + card.duplicates + card.dropped + card.held_out + card.withheld
    )


def stored(path: Path) -> list[Record]:
    return [Record.from_json(orjson.loads(line)) for line in path.read_bytes().splitlines()]


def test_a_good_file_is_usable_and_every_record_counted(check: Checker) -> None:
    card = check(chats(10))
    assert card.usable and card.reason is None
    assert (card.format, card.kind, card.container) == ("messages", "chat", "jsonl")
    assert card.format_reason == "line 1: it has the key 'messages'"
    assert (card.records_total, card.accepted, card.refused) == (10, 10, 0)
    assert adds_up(card)


def test_the_tokens_are_those_of_the_template(check: Checker, template: ChatTemplate) -> None:
    records = [chat("short"), chat("somewhat longer than that", "an answer of some words")]
    encoded = [template.encode_messages(record["messages"]) for record in records]
    tokens = check(records).tokens
    assert tokens.total == sum(len(one.input_ids) for one in encoded)
    assert tokens.assistant == sum(one.assistant_tokens for one in encoded)
    assert (tokens.min, tokens.max) == (len(encoded[0].input_ids), len(encoded[1].input_ids))


def test_duplicates_are_counted_and_trained_once(check: Checker, tmp_path: Path) -> None:
    run = RunPaths(tmp_path / "run")
    again = {"prompt": "question 3", "response": "yes", "id": 9}
    card = check([*chats(5), *chats(2), again], output=run)
    assert (card.accepted, card.duplicates) == (5, 3)
    assert sorted(record.line for record in stored(run.train_records)) == [1, 2, 3, 4, 5]
    assert adds_up(card)


def test_the_run_holds_every_accepted_record_in_its_normal_form(check: Checker, tmp_path: Path) -> None:
    run = RunPaths(tmp_path / "run")
    card = check(
        [
            {"instruction": "Say yes.", "output": "yes"},
            {"instruction": "", "output": "no"},
            *[chat("x" * 9)] * 8,
        ],
        output=run,
        config=ALL_BAD,
    )
    first, second = sorted(stored(run.train_records), key=lambda record: record.line)
    assert first == Record(1, "chat", chat("Say yes.")["messages"])
    assert second.line == 3
    (refused,) = map(orjson.loads, run.refused.read_bytes().splitlines())
    assert (refused["line"], refused["field"], refused["raw"]) == (
        2,
        "instruction",
        '{"instruction":"","output":"no"}',
    )
    assert ReportCard.model_validate(orjson.loads(run.report.read_bytes())) == card
    assert run.report_text.read_text(encoding="utf-8") == card.to_text()


@pytest.mark.parametrize(
    ("record", "keys"),
    [
        ({"text": "once upon a time"}, {"line", "text"}),
        ({"prompt": "2+2?", "chosen": "4", "rejected": "5"}, {"line", "prompt", "chosen", "rejected"}),
    ],
)
def test_texts_and_pairs_are_stored_under_their_own_keys(
    check: Checker, tmp_path: Path, record: dict[str, str], keys: set[str]
) -> None:
    run = RunPaths(tmp_path / "run")
    card = check([record], output=run)
    assert card.usable
    assert set(orjson.loads(run.train_records.read_bytes())) == keys


# --- length


def long_records(template: ChatTemplate) -> tuple[list[dict[str, Any]], int]:
    """Return a short chat, one with a long answer, one with a long question, and the short one's length."""
    records = [chat("hi"), chat("hi", "word " * 60), chat("word " * 60, "no")]
    return records, len(template.encode_messages(records[0]["messages"]).input_ids)


@pytest.mark.config_key("data.max_length")
@pytest.mark.parametrize("shift", [0, 1])
def test_a_record_may_have_just_the_limit(check: Checker, template: ChatTemplate, shift: int) -> None:
    records, length = long_records(template)
    card = check(records[:1], config=DataConfig(max_length=length - shift, max_bad_fraction=1))
    assert (card.accepted, card.refused, card.over_length) == (1 - shift, shift, shift)


@pytest.mark.config_key("data.excess_length", "data.max_length")
@pytest.mark.parametrize(
    ("policy", "accepted", "refused", "dropped", "lines"),
    [
        ("refuse", 1, 2, 0, [1]),
        ("drop", 1, 0, 2, [1]),
        ("truncate", 2, 1, 0, [1, 2]),
        ("split", 3, 0, 0, [1, 2, 3]),
    ],
)
def test_what_happens_to_long_records_is_a_choice(
    *,
    check: Checker,
    template: ChatTemplate,
    tmp_path: Path,
    policy: str,
    accepted: int,
    refused: int,
    dropped: int,
    lines: list[int],
) -> None:
    records, length = long_records(template)
    run = RunPaths(tmp_path / "run")
    config = DataConfig.model_validate({"max_length": length, "excess_length": policy, "max_bad_fraction": 1})
    card = check(records, config=config, output=run)
    assert (card.accepted, card.refused, card.dropped) == (accepted, refused, dropped)
    assert card.over_length == 2
    assert [record.line for record in stored(run.train_records)] == lines
    assert adds_up(card)
    # The file stores whole records; cutting them is the dataset's work.
    assert all(len(record.messages) == 2 for record in stored(run.train_records))


def test_the_plan_counts_cut_and_split_records_as_what_they_become(
    check: Checker, template: ChatTemplate
) -> None:
    records, length = long_records(template)
    long = len(template.encode_messages(records[1]["messages"]).input_ids)
    cut = check(records[:2], config=DataConfig(max_length=length, excess_length="truncate")).plan
    split = check(records[:2], config=DataConfig(max_length=length, excess_length="split")).plan
    assert cut is not None and split is not None
    assert (cut.rows, cut.tokens_per_epoch) == (2, 2 * length)
    assert (split.rows, split.tokens_per_epoch) == (1 + -(-long // length), length + long)


def test_a_long_pair_can_be_cut_but_not_split(check: Checker, template: ChatTemplate) -> None:
    pair = {"prompt": "hi", "chosen": "word " * 60, "rejected": "no"}
    for policy, accepted in (("truncate", 1), ("split", 0), ("refuse", 0), ("drop", 0)):
        config = DataConfig.model_validate({"max_length": 30, "excess_length": policy, "max_bad_fraction": 1})
        card = check([pair], config=config)
        assert (card.accepted, card.over_length) == (accepted, 1)
    late = {"prompt": "word " * 60, "chosen": "yes", "rejected": "no"}
    config = DataConfig(max_length=30, excess_length="truncate", max_bad_fraction=1)
    assert "the answer beginning at token" in check([late], config=config).refusals[0].found


@pytest.mark.config_key("data.max_bytes")
def test_a_file_that_holds_more_than_max_bytes_is_refused(check: Checker) -> None:
    content = gzip.compress(b"".join(b'{"text": "number %d"}\n' % number for number in range(1000)))
    assert check(content, ".jsonl.gz").usable
    card = check(content, ".jsonl.gz", config=DataConfig(max_bytes=10_000))
    assert not card.usable
    assert card.reason is not None and "more than 10,000 bytes of data" in card.reason


@pytest.mark.config_key("data.max_line_bytes")
def test_a_line_above_the_limit_is_refused(check: Checker) -> None:
    records = [chat("x" * 500), chat("y")]
    assert check(records).refused == 0
    card = check(records, config=DataConfig(max_line_bytes=300, max_bad_fraction=1))
    assert (card.accepted, card.refused) == (1, 1)
    assert "data.max_line_bytes" in card.refusals[0].expected


# --- the verdict on the file


@pytest.mark.config_key("data.max_bad_fraction")
@pytest.mark.parametrize(("bad", "usable"), [(2, True), (3, False)])
def test_a_file_with_too_many_bad_records_is_refused(check: Checker, bad: int, usable: bool) -> None:
    card = check(
        [*chats(10 - bad), *[chat(number) for number in range(bad)]], config=DataConfig(max_bad_fraction=0.2)
    )
    assert card.usable is usable
    assert card.refused == bad
    if not usable:
        assert card.reason == (
            "3 of 10 records are refused (30.0%), more than data.max_bad_fraction allows (20.0%); "
            "the first is line 8, messages[0].content: found the number 0, expected text; write it in quotes"
        )


def test_left_out_records_are_not_bad_ones(check: Checker) -> None:
    records = [*chats(5), *[chat(f"{number} " * 100) for number in range(5)]]
    card = check(records, config=DataConfig(max_length=60, excess_length="drop", max_bad_fraction=0))
    assert card.usable
    assert (card.dropped, card.refused) == (5, 0)


def test_a_file_without_anything_left_to_train_is_refused(check: Checker) -> None:
    card = check([chat("x " * 200)] * 3, config=DataConfig(max_length=20, excess_length="drop"))
    assert not card.usable and card.plan is None
    assert card.reason is not None and card.reason.startswith("no record is left to train on")


def test_a_refused_file_leaves_nothing_to_train_but_its_refused_records(
    check: Checker, tmp_path: Path
) -> None:
    run = RunPaths(tmp_path / "run")
    card = check([chat("good"), chat(1), chat(2)], output=run)
    assert not card.usable
    assert not run.train_records.exists() and not run.held_out_records.exists()
    assert len(run.refused.read_bytes().splitlines()) == 2


def test_damage_after_good_records_refuses_the_file(check: Checker) -> None:
    content = b"[" + b",".join(orjson.dumps(record) for record in chats(5)) + b', {"messages": ['
    card = check(content, ".json")
    assert not card.usable and card.reason is not None
    assert "never closed" in card.reason
    assert card.records_total == 5
    assert adds_up(card)


def test_refusals_beyond_the_report_are_counted_and_all_kept(check: Checker, tmp_path: Path) -> None:
    run = RunPaths(tmp_path / "run")
    count = REFUSALS_IN_REPORT + 5
    card = check(b"x\n" * count, output=run)
    assert (card.refused, len(card.refusals)) == (count, REFUSALS_IN_REPORT)
    assert "only the first 10,000 refused records are listed; refused.jsonl has them all" in card.notes
    assert len(run.refused.read_bytes().splitlines()) == count


@pytest.mark.parametrize(
    "line", [b'{"messages":[{"role":"user","content":null}]}', b'{"a":NaN}', b"{'a':1}", b"{"]
)
def test_refused_records_leave_no_garbage_behind(check: Checker, line: bytes) -> None:
    check(line + b"\n")
    gc.collect()
    gc.disable()
    try:
        check((line + b"\n") * 3000)
        assert gc.collect() < 1000
    finally:
        gc.enable()


# --- held out


@pytest.mark.config_key("data.held_out_fraction")
@pytest.mark.parametrize(("fraction", "low", "high"), [(0.0, 0, 0), (0.1, 10, 35), (0.5, 80, 120)])
def test_a_share_of_the_records_is_held_out(
    *, check: Checker, tmp_path: Path, fraction: float, low: int, high: int
) -> None:
    run = RunPaths(tmp_path / "run")
    config = DataConfig(held_out_fraction=fraction, held_out_max_records=1000)
    card = check(chats(200), config=config, output=run)
    assert low <= card.held_out <= high
    held, trained = stored(run.held_out_records), stored(run.train_records)
    assert (len(held), len(trained)) == (card.held_out, card.accepted)
    assert not {record.key() for record in held} & {record.key() for record in trained}
    assert adds_up(card)


@pytest.mark.config_key("data.held_out_max_records")
@pytest.mark.parametrize("most", [0, 3, 1000])
def test_no_more_than_so_many_records_are_held_out(check: Checker, most: int) -> None:
    config = DataConfig(held_out_fraction=0.5, held_out_max_records=most)
    card = check(chats(100), config=config)
    assert card.held_out == most if most < 10 else card.held_out > 30
    assert adds_up(card)


@pytest.mark.config_key("data.held_out_min_records")
@pytest.mark.parametrize(("least", "leaves_some"), [(50, True), (51, False)])
def test_a_small_file_is_trained_whole(check: Checker, tmp_path: Path, least: int, leaves_some: bool) -> None:
    run = RunPaths(tmp_path / "run")
    card = check(chats(50), config=DataConfig(held_out_fraction=0.5, held_out_min_records=least), output=run)
    assert (card.held_out > 0) is leaves_some
    assert len(stored(run.train_records)) == card.accepted == 50 - card.held_out


def test_the_seed_decides_which_records_are_held_out(check: Checker, tmp_path: Path) -> None:
    lines = []
    for seed in (1, 1, 2):
        run = RunPaths(tmp_path / "run")
        check(chats(100), config=DataConfig(held_out_fraction=0.2), output=run, seed=seed)
        lines.append([record.line for record in stored(run.held_out_records)])
    assert lines[0] == lines[1] != lines[2]


def test_what_was_held_out_before_is_never_trained(check: Checker, tmp_path: Path) -> None:
    run = RunPaths(tmp_path / "run")
    known = Record(0, "chat", chat("question 3")["messages"]).key()
    card = check(chats(5), output=run, held_out_keys={known})
    assert (card.accepted, card.held_out) == (4, 1)
    assert [record.line for record in stored(run.held_out_records)] == [4]
    assert known not in {record.key() for record in stored(run.train_records)}


def test_near_copies_of_held_out_records_of_any_file_are_withheld_and_told(
    check: Checker, tmp_path: Path
) -> None:
    run, earlier = RunPaths(tmp_path / "run"), tmp_path / "000001-aaaaaaaa.jsonl"
    known = Record(
        7, "chat", chat("why does the old heron stand alone beside the frozen northern river")["messages"]
    )
    earlier.write_bytes(orjson.dumps(known.to_json()) + b"\n")
    copy = chat("WHY does the old heron   stand alone, beside the frozen northern river?!")
    records = [*chats(60), copy]
    card = check(records, config=DataConfig(held_out_fraction=0.1), output=run, held_out_files=[earlier])
    assert adds_up(card)
    copies = [one for one in card.withheld_records if one.held_out_by is not None]
    assert [(one.line, one.held_out_by, one.held_out_line) for one in copies] == [(61, "000001-aaaaaaaa", 7)]
    assert 61 not in [record.line for record in stored(run.train_records)]
    assert len(stored(run.train_records)) == card.accepted
    assert card.plan is not None and card.plan.records == card.plan.rows == card.accepted
    assert "line 61 shares 100% with held-out line 7 of job 000001-aaaaaaaa" in card.to_text()
    alone = check(chats(60), config=DataConfig(held_out_fraction=0.1), output=run)
    again = stored(run.held_out_records)[0]
    planted = chat(again.messages[0]["content"].upper() + " …")
    card = check([*chats(60), planted], config=DataConfig(held_out_fraction=0.1), output=run)
    assert card.withheld == alone.withheld + 1
    assert (61, None) in [(one.line, one.held_out_by) for one in card.withheld_records]


# --- plan, progress, names


def test_the_plan_follows_from_batch_epochs_and_speed(check: Checker) -> None:
    card = check(chats(19), plan=PlanInputs(batch_records=8, epochs=3, tokens_per_second=50))
    plan = card.plan
    assert plan is not None
    assert (plan.records, plan.steps_per_epoch, plan.total_steps) == (19, 3, 9)
    assert plan.tokens_per_epoch == card.tokens.total
    assert plan.estimated_seconds == pytest.approx(3 * card.tokens.total / 50)
    unknown = check(chats(19)).plan
    assert unknown is not None and unknown.estimated_seconds is None


def test_progress_is_told_and_ends_at_the_end(check: Checker) -> None:
    told: list[tuple[int, int, int]] = []
    card = check(chats(5000), on_progress=lambda *numbers: told.append(numbers))
    assert len(told) > 1
    assert told[-1] == (card.size_bytes, card.size_bytes, 5000)
    assert told == sorted(told)


def test_a_check_can_be_broken_off_and_leaves_nothing(check: Checker, tmp_path: Path) -> None:
    run = RunPaths(tmp_path / "run")

    def stop(*_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check(chats(5000), output=run, on_progress=stop)
    assert list(run.data.iterdir()) == []


def test_a_hostile_name_is_shown_escaped(check: Checker) -> None:
    card = check(chats(3), name="a\x1b[2J\n\udcff\u202egpj.jsonl")
    assert card.name == r"a\x1b[2J\n\udcff\u202egpj.jsonl"
    assert card.to_text().splitlines()[0].startswith(r"Report card of a\x1b[2J\n\udcff\u202egpj.jsonl")
    assert orjson.loads(card.to_json())["name"] == card.name


def test_a_base_model_without_a_template_trains_no_chats_but_texts(check: Checker, tiny_model: Path) -> None:
    tokenizer = (tiny_model / "tokenizer.json").read_text(encoding="utf-8")
    bare = ChatTemplate(tokenizer, None, {"eos_token": "<|im_end|>"})
    card = check(chats(3), template=bare)
    assert not card.usable and card.reason is not None
    assert "without a chat template" in card.reason
    assert check([{"text": "once"}], template=bare).usable


# --- anything at all

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
ROLES = st.sampled_from(
    ["system", "user", "assistant", "tool", "human", "gpt", "function_call", "boss", None]
)
CONTENTS = (
    st.sampled_from(["yes", "no", " ", "", None, 3, [{"type": "text", "text": "a"}], "word " * 40]) | JSON
)
TURNS = st.fixed_dictionaries(
    {"role": ROLES, "content": CONTENTS},
    optional={"tool_calls": JSON, "name": JSON, "from": ROLES, "value": CONTENTS},
)
FIELDS = st.lists(TURNS, max_size=4) | CONTENTS
KEYS = sorted({key for keys in KNOWN_KEYS.values() for key in keys} | {"id", "images"})
RECORDS = st.dictionaries(st.sampled_from(KEYS), FIELDS, max_size=5) | st.sampled_from(chats(3)) | JSON
POLICIES = st.sampled_from(["refuse", "drop", "truncate", "split"])
RELAXED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)


@RELAXED
@given(
    records=st.lists(RECORDS, max_size=12), policy=POLICIES, least=st.integers(1, 5), seed=st.integers(0, 9)
)
def test_every_record_is_counted_once_and_stored_once(
    *, tmp_path: Path, template: ChatTemplate, records: list[Any], policy: str, least: int, seed: int
) -> None:
    path, run = tmp_path / "file.jsonl", RunPaths(tmp_path / "run")
    path.write_bytes(
        b"".join(orjson.dumps(record, default=str) + b"\n" for record in map(_storable, records))
    )
    config = DataConfig.model_validate(
        {
            "max_length": 40,
            "excess_length": policy,
            "max_bad_fraction": 1,
            "held_out_fraction": 0.5,
            "held_out_min_records": least,
        }
    )
    card = check_file(
        path, config, template, seed=seed, name="x", plan=PlanInputs(2, 1), output=run, held_out_keys={b"?"}
    )
    assert adds_up(card)
    assert card.records_total == len(records)
    assert card.usable == (card.accepted > 0)
    assert len(run.refused.read_bytes().splitlines()) == card.refused
    if card.usable:
        kept = [*stored(run.train_records), *stored(run.held_out_records)]
        assert len(kept) == card.accepted + card.held_out == len({record.key() for record in kept})
        assert len({record.kind for record in kept}) == 1


def _storable(value: Any) -> Any:
    """Make a drawn value something that orjson writes: no lone surrogates, no integers beyond 64 bits."""
    if isinstance(value, dict):
        return {str(_storable(key)): _storable(item) for key, item in value.items()}
    if isinstance(value, list):
        return list(map(_storable, value))
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, int):
        return max(-(2**63), min(value, 2**63))
    return value


@RELAXED
@pytest.mark.parametrize("suffix", SUFFIXES)
@given(
    content=st.binary(max_size=200),
    damage=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6),
)
def test_no_bytes_make_a_check_raise(
    *, tmp_path: Path, template: ChatTemplate, suffix: str, content: bytes, damage: list[tuple[int, int]]
) -> None:
    path = tmp_path / f"file{suffix}"
    good = bytearray(b"".join(orjson.dumps(record) + b"\n" for record in chats(3)) + content)
    for position, byte in damage:
        if position < len(good):
            good[position] = byte
    for candidate in (bytes(good), content):
        path.write_bytes(candidate)
        card = check_file(path, DataConfig(), template, seed=1, name="x", plan=PlanInputs(2, 1))
        assert adds_up(card)
        assert card.usable is (card.reason is None)
        assert card.to_text() and card.to_json()


def test_the_grader_of_a_record_is_kept_with_it(check: Checker, tmp_path: Path) -> None:
    run = RunPaths(tmp_path / "run")
    records = [chat("2+2?", "4") | {"grader": "number"}, chat("3+1?", "four") | {"grader": "number"}]
    card = check([*records, chat("5?")], output=run, config=DataConfig(max_bad_fraction=0.5))
    assert [record.grader for record in stored(run.train_records)] == [{"name": "number"}, None]
    (refused,) = card.refusals
    assert (refused.line, refused.field) == (2, "grader")
