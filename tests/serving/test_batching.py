"""Requests that are decoded together get the answers they would get alone."""

from __future__ import annotations

import dataclasses
import shutil
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from config import Paths, load_config
from evaluation.generation import Generator
from serving import adapters, batching
from serving.adapters import AdaptedModel
from serving.batching import Engine
from serving.catalogue import Catalogue, ServedModel
from serving.decoding import Batch
from serving.sampling import Sampler
from serving.tickets import CannotAnswer, Piece, QueueFull, Sampling, Ticket
from tests.serving.published import catalogue, make_base, publish
from tests.waiting import wait_until
from training.model import known_warnings, load_generator

QUESTIONS = [
    "red",
    "what colour is the rain",
    "the cat sat on the warm mat and watched",
    "grey or blue",
    "0 1 2",
]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Paths:
    made = make_base(tmp_path_factory.mktemp("served"), tiny_model)
    for seed in range(3):
        publish(made, tiny_model, seed)
    return made


class Desk:
    """An engine with what it has handed out."""

    def __init__(self, paths: Paths, *, max_batch: int = 8, max_queue: int = 64) -> None:
        self.models: Catalogue = catalogue(paths)
        self.model = AdaptedModel(load_config(paths.base))
        self.pieces: dict[Ticket, list[Piece]] = {}
        self.rounds: list[int] = []
        self.engine = Engine(self.model, max_batch, max_queue, self._hand_out)
        self._started = False

    def _hand_out(self, pieces: Sequence[tuple[Ticket, Piece]]) -> None:
        for ticket, piece in pieces:
            ticket.receive(piece)

    def ticket(
        self,
        question: str,
        model: str = "current",
        *,
        max_tokens: int = 12,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        streamed: bool = False,
    ) -> Ticket:
        served = self.models.find(model)
        prompt = served.base.template.encode_prompt([{"role": "user", "content": question}])
        pieces: list[Piece] = []
        ticket = Ticket(
            *(served, prompt, max_tokens, pieces.append),
            sampling=sampling or Sampling(),
            stop=stop,
            is_streamed=streamed,
        )
        self.pieces[ticket] = pieces
        return ticket

    def start(self) -> None:
        self._started = True
        self.engine.start()

    def close(self) -> None:
        if self._started:
            self.engine.stop()

    def answer(self, ticket: Ticket) -> Piece:
        wait_until(lambda: self.pieces[ticket] and self.pieces[ticket][-1].is_last)
        return self.pieces[ticket][-1]

    def ask(self, *tickets: Ticket) -> list[Piece]:
        self.engine.submit(tickets)
        return [self.answer(ticket) for ticket in tickets]


@pytest.fixture
def desk(paths: Paths) -> Iterator[Desk]:
    made = Desk(paths)
    yield made
    made.close()


def alone(paths: Paths, model: str) -> Generator:
    return load_generator(paths, load_config(paths.base), model)


def test_greedy_answers_are_those_of_the_command_line(desk: Desk, paths: Paths) -> None:
    desk.start()
    for model in ("base", "v0002", "current"):
        generator = alone(paths, model)
        pieces = desk.ask(*[desk.ticket(question, model) for question in QUESTIONS])
        answers = generator.generate(
            [[{"role": "user", "content": text}] for text in QUESTIONS], max_new_tokens=12
        )
        assert [piece.text for piece in pieces] == [answer.text for answer in answers]
        assert [piece.tokens for piece in pieces] == [answer.tokens for answer in answers]
        assert [piece.finish_reason for piece in pieces] == [answer.finish_reason for answer in answers]


def test_greedy_answers_are_those_of_plain_transformers_and_peft(desk: Desk, tiny_model: Path) -> None:
    desk.start()
    ticket = desk.ticket(QUESTIONS[2], "v0001")
    (piece,) = desk.ask(ticket)
    template, folder = ticket.served.base.template, ticket.served.adapter
    with known_warnings():
        plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), str(folder))
    ids = torch.tensor([list(ticket.prompt)])
    output = plain.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12,
        eos_token_id=sorted(template.stop_token_ids), pad_token_id=template.pad_token_id,
    )  # fmt: skip
    assert piece.text == template.decode(output[0, ids.shape[1] :].tolist())


def test_those_that_join_and_leave_do_not_change_the_answers_of_others(desk: Desk) -> None:
    """Different lengths make rows leave at different times while others wait for a place."""
    limits = [3, 17, 9, 30, 1, 12, 5, 24, 2, 40]
    asked = [(QUESTIONS[at % len(QUESTIONS)] * (at % 3 + 1), limit) for at, limit in enumerate(limits)]
    small = Desk.__new__(Desk)
    small.__dict__.update(desk.__dict__)
    small.engine = Engine(desk.model, 3, 64, desk._hand_out)
    together = [small.ticket(text, max_tokens=limit) for text, limit in asked]
    small.engine.start()
    first = small.ask(*together)
    one_by_one = [small.ask(small.ticket(text, max_tokens=limit))[0] for text, limit in asked]
    small.engine.stop()
    assert [piece.text for piece in first] == [piece.text for piece in one_by_one]
    assert {piece.tokens for piece in first if piece.finish_reason == "length"} <= set(limits)


def test_versions_are_answered_side_by_side(desk: Desk, paths: Paths) -> None:
    models = ["base", "v0001", "v0002", "v0003"]
    tickets = [desk.ticket(QUESTIONS[1], model, max_tokens=20) for model in models]
    desk.start()
    pieces = desk.ask(*tickets)
    expected = [
        alone(paths, model).generate([[{"role": "user", "content": QUESTIONS[1]}]], max_new_tokens=20)[0].text
        for model in models
    ]
    assert [piece.text for piece in pieces] == expected
    assert len(set(expected)) > 1


def test_a_seed_repeats_an_answer_whatever_else_is_answered(desk: Desk) -> None:
    desk.start()
    drawn = Sampling(temperature=1.5, top_p=0.9, seed=7)
    (first,) = desk.ask(desk.ticket("red", sampling=drawn, max_tokens=20))
    crowd = [desk.ticket(text, max_tokens=20) for text in QUESTIONS]
    again, *_ = desk.ask(desk.ticket("red", sampling=drawn, max_tokens=20), *crowd)
    other, greedy = desk.ask(
        desk.ticket("red", sampling=Sampling(temperature=1.5, seed=8), max_tokens=20),
        desk.ticket("red", max_tokens=20),
    )
    assert first.text == again.text
    assert len({first.text, other.text, greedy.text}) == 3


def test_streamed_pieces_are_the_whole_answer(desk: Desk) -> None:
    desk.start()
    whole, streamed = desk.ticket("red", max_tokens=30), desk.ticket("red", max_tokens=30, streamed=True)
    (answer, _) = desk.ask(whole, streamed)
    pieces = desk.pieces[streamed]
    assert "".join(piece.text for piece in pieces) == answer.text
    assert len(pieces) > 1
    assert len(desk.pieces[whole]) == 1


def test_a_stop_sequence_ends_an_answer_before_it(desk: Desk) -> None:
    desk.start()
    (whole,) = desk.ask(desk.ticket("red", max_tokens=30))
    stop = whole.text[5:8]
    (cut,) = desk.ask(desk.ticket("red", max_tokens=30, stop=[stop]))
    assert cut.text == whole.text.partition(stop)[0]
    assert cut.finish_reason == "stop"
    assert cut.tokens < whole.tokens


@pytest.mark.config_key("serving.max_queue")
def test_a_full_queue_takes_no_more(paths: Paths) -> None:
    desk = Desk(paths, max_queue=2)
    desk.engine.submit([desk.ticket("red"), desk.ticket("green")])
    with pytest.raises(QueueFull, match=r"serving\.max_queue"):
        desk.engine.submit([desk.ticket("blue")])


def test_whoever_goes_away_frees_the_place_at_once(paths: Paths) -> None:
    desk = Desk(paths, max_batch=1, max_queue=1)
    endless = desk.ticket("red", max_tokens=400, stop=["never said"], streamed=True)
    served = endless.served.base.template
    desk.engine.submit([endless])
    gone = desk.ticket("green")
    with pytest.raises(QueueFull):
        desk.engine.submit([gone])
    desk.engine.cancel(endless)
    desk.start()
    (answer,) = desk.ask(desk.ticket("blue", max_tokens=4))
    desk.close()
    assert answer.finish_reason is not None
    assert desk.pieces[endless] == []
    assert served.has_template


def test_a_running_answer_nobody_waits_for_ends(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end token is kept away, so that only the cancellation can end the answer."""
    endless = desk.ticket("red", max_tokens=100_000, streamed=True)
    monkeypatch.setattr(endless.served.base.template, "stop_token_ids", frozenset())
    desk.start()
    desk.engine.submit([endless])
    wait_until(lambda: desk.engine.running == 1)
    desk.engine.cancel(endless)
    wait_until(lambda: desk.engine.running == 0)
    assert not any(piece.is_last for piece in desk.pieces[endless])


def test_adapters_nobody_needs_are_dropped(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "ADAPTERS_KEPT", 1)
    desk.start()
    answers: dict[str, str] = {}
    for model in ("v0001", "v0002", "base", "v0003", "v0001"):
        (piece,) = desk.ask(desk.ticket("red", model, max_tokens=20))
        assert answers.setdefault(model, piece.text) == piece.text
    desk.ask(desk.ticket("red", "v0001"))
    assert desk.model.adapters == ["v0001"]


def test_a_round_that_breaks_fails_its_requests_and_no_later_ones(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain: Callable[[ServedModel], None] = desk.model.use
    calls = threading.Semaphore(1)

    def breaks_once(served: ServedModel) -> None:
        if calls.acquire(blocking=False):
            raise RuntimeError("a kernel failed")
        plain(served)

    monkeypatch.setattr(desk.model, "use", breaks_once)
    desk.start()
    (broken,) = desk.ask(desk.ticket("red"))
    (well,) = desk.ask(desk.ticket("red"))
    assert isinstance(broken.error, CannotAnswer)
    assert well.finish_reason is not None
    assert "a kernel failed" in caplog.text


def test_broken_rounds_add_up_until_one_brings_an_answer_on(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Idle rounds between the requests forgive nothing, and a verdict stays."""
    monkeypatch.setattr(batching, "IDLE_SECONDS", 0.001)
    desk.start()

    def break_rounds(count: int) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(desk.model, "use", lost_gpu)
            for _ in range(count):
                assert isinstance(desk.ask(desk.ticket("red"))[0].error, CannotAnswer)
                wait_for_idle_round(desk, monkeypatch)

    break_rounds(2)
    assert (desk.engine.failures, desk.engine.is_broken) == (2, False)
    assert desk.ask(desk.ticket("red"))[0].finish_reason is not None
    wait_until(lambda: desk.engine.failures == 0)
    break_rounds(3)
    assert (desk.engine.failures, desk.engine.is_broken) == (3, True)
    assert desk.ask(desk.ticket("red"))[0].finish_reason is not None
    wait_until(lambda: desk.engine.failures == 0)
    assert desk.engine.is_broken


def lost_gpu(served: ServedModel) -> None:
    raise RuntimeError("CUDA error: unspecified launch failure")


def wait_for_idle_round(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait until a round has begun and ended that had nothing to do."""
    ended: list[object] = []
    with monkeypatch.context() as patched:
        patched.setattr(desk.model, "drop_unused", ended.append)
        wait_until(lambda: len(ended) > 1)


def test_memory_that_is_short_lowers_how_many_are_answered_at_once(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, sizes = Batch.join, []

    def short(batch: Batch, prompts: Sequence[Sequence[int]], samplers: Sequence[Sampler]) -> list[int]:
        if len(prompts) > 2:
            raise torch.OutOfMemoryError
        sizes.append(len(prompts))
        return plain(batch, prompts, samplers)

    monkeypatch.setattr(Batch, "join", short)
    desk.engine.submit(tickets := [desk.ticket(text) for text in QUESTIONS])
    desk.start()
    assert all(desk.answer(ticket).finish_reason for ticket in tickets)
    assert max(sizes) == 2


def test_what_is_unanswered_at_the_end_is_told_so(paths: Paths) -> None:
    desk = Desk(paths)
    ticket = desk.ticket("red")
    desk.engine.submit([ticket])
    desk.engine._is_stopping = True
    desk.start()
    assert isinstance(desk.answer(ticket).error, CannotAnswer)
    desk.close()


def test_another_base_takes_the_place_of_the_one_in_memory(tmp_path: Path, tiny_model: Path) -> None:
    """Its requests wait until those that are being answered are done."""
    other = tmp_path / "merged"
    shutil.copytree(tiny_model, other)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.1)
    model.save_pretrained(other)
    first = Desk(make_base(tmp_path / "first", tiny_model))
    second = catalogue(make_base(tmp_path / "second", other))
    tickets = [first.ticket("red", max_tokens=9) for _ in range(2)]
    strange = first.ticket("red", max_tokens=9)
    strange.served = second.find("base")
    first.engine.submit([tickets[0], strange, tickets[1]])
    first.start()
    answers = [first.answer(ticket) for ticket in (tickets[0], strange, tickets[1])]
    first.close()
    assert answers[0].text == answers[2].text
    expected = load_generator(Paths(tmp_path / "second"), load_config(tmp_path / "second"), "base")
    (alone,) = expected.generate([[{"role": "user", "content": "red"}]], max_new_tokens=9)
    assert answers[1].text == alone.text


def test_a_base_that_cannot_be_loaded_fails_its_own_requests_only(desk: Desk, tmp_path: Path) -> None:
    well, broken = desk.ticket("red"), desk.ticket("red")
    broken.served = dataclasses.replace(
        broken.served, base=dataclasses.replace(broken.served.base, folder=tmp_path / "nowhere")
    )
    desk.engine.submit([broken, well])
    desk.start()
    assert desk.answer(broken).error is not None
    assert desk.answer(well).finish_reason is not None


@pytest.mark.parametrize("trouble", [torch.OutOfMemoryError("CUDA out of memory"), FileNotFoundError("gone")])
def test_an_adapter_that_cannot_be_loaded_fails_its_own_requests_only(
    desk: Desk, trouble: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer with another version goes on meanwhile, and so does the version once it can be loaded."""
    desk.start()
    desk.ask(desk.ticket("red", "v0001", max_tokens=1))  # which loads its adapter
    going = desk.ticket("red", "v0001", max_tokens=40)
    plain = PeftModel.load_adapter

    def fail(*arguments: object, **named: object) -> None:
        raise trouble

    monkeypatch.setattr(PeftModel, "load_adapter", fail)
    desk.engine.submit([going, broken := desk.ticket("red", "v0002")])
    assert desk.answer(broken).error is not None
    assert desk.answer(going).finish_reason is not None
    assert desk.engine.failures == 0
    monkeypatch.setattr(PeftModel, "load_adapter", plain)
    assert desk.ask(desk.ticket("red", "v0002"))[0].finish_reason is not None


def test_a_request_that_goes_away_while_the_first_in_line_is_looked_at_breaks_no_round(desk: Desk) -> None:
    """The queue is emptied in the middle of the look, as a cancellation from another thread does."""
    ticket = desk.ticket("red")

    class Vanishing(deque[Ticket]):
        def __bool__(self) -> bool:
            is_filled = len(self) > 0
            if is_filled and not desk.engine._changed._is_owned():  # type: ignore[attr-defined]
                desk.engine.cancel(ticket)
            return is_filled

    desk.engine._waiting = Vanishing([ticket])
    assert desk.engine._next_groups() in ([], [[ticket]])


def test_what_comes_together_is_read_together(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    plain = Batch.join

    def counted(batch: Batch, prompts: Sequence[Sequence[int]], samplers: Sequence[Sampler]) -> list[int]:
        sizes.append(len(prompts))
        return plain(batch, prompts, samplers)

    monkeypatch.setattr(Batch, "join", counted)
    monkeypatch.setattr(batching, "GATHER_SECONDS", 60.0)
    first, second = desk.ticket("red"), desk.ticket("green")
    desk.start()
    with desk.engine.expecting():
        desk.engine.submit([first])
        desk.engine.submit([second])
    assert desk.answer(first).finish_reason
    assert desk.answer(second).finish_reason
    assert sizes == [2]
