"""The thread that answers: what waits joins what is being answered, one token for everybody each round.

Requests for the same version are decoded together; versions take turns, one token each. A request for
another base, or a change of the device, waits until what is in flight is done; those after it wait, too.
The base of a version that has become current is loaded beside the other before it is asked for.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from errors import TrainboxError
from evaluation.short_memory import free_memory, halved
from serving.adapters import AdaptedModel, Place
from serving.catalogue import ServedModel
from serving.decoding import Batch
from serving.rows import Lane, Row
from serving.sampling import Sampler
from serving.tickets import CannotAnswer, Piece, QueueFull, Ticket

logger = logging.getLogger(__name__)

PREFILL_TOKENS = 8192
"""Prompts that are read at once hold no more, padding included, so that running answers do not stall."""
IDLE_SECONDS = 0.5
"""Time between two looks at whether the device has changed when there is nothing to do."""

GATHER_SECONDS = 0.05
"""Longest time that an idle engine waits for requests that are on their way, to read them all at once."""

MOST_FAILURES = 3
"""After so many broken rounds without a good one between them the engine counts as broken for good."""

HandOut = Callable[[Sequence[tuple[Ticket, Piece]]], None]


class Engine:
    """Answers tickets in a thread of its own; every method may be called by any other thread."""

    def __init__(self, model: AdaptedModel, max_batch: int, max_queue: int, hand_out: HandOut) -> None:
        """`hand_out` is called with the pieces of each round."""
        self._model = model
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._hand_out = hand_out
        self._changed = threading.Condition()
        self._waiting: deque[Ticket] = deque()
        self._preload: ServedModel | None = None
        self._place: Place = "accelerator"
        self._is_stopping = False
        self._expected = 0
        self._lanes: dict[tuple[str, str], Lane] = {}
        self._room = max_batch
        self._joining: list[Ticket] = []
        self._pieces: list[tuple[Ticket, Piece]] = []
        self._has_answered = False
        self.failures = 0
        """Rounds that ended by an error nobody foresaw since the last one that brought an answer on."""
        self.is_broken = False
        """Whether there were so many that the GPU must be lost; a fresh process is needed then."""
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)

    def load_now(self, served: ServedModel) -> None:
        """Load a model before `start`; raises what its base or its adapter has to say."""
        self._model.settle(served.base.folder, self._place)
        self._model.use(served)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """End after the current round; what is unanswered is told so."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        self._thread.join()

    @contextlib.contextmanager
    def expecting(self) -> Iterator[None]:
        """Tell that a request is on its way, so that what comes together is read together."""
        with self._changed:
            self._expected += 1
        try:
            yield
        finally:
            with self._changed:
                self._expected -= 1
                self._changed.notify()

    def submit(self, tickets: Sequence[Ticket]) -> None:
        """Let tickets wait for their answers; raise QueueFull when there is no room for all of them."""
        with self._changed:
            if len(self._waiting) + len(tickets) > self._max_queue:
                raise QueueFull(
                    f"found {len(self._waiting)} requests waiting, expected room for {len(tickets)} within "
                    f"{self._max_queue} (serving.max_queue); try again in a moment"
                )
            self._waiting.extend(tickets)
            self._changed.notify()

    def cancel(self, ticket: Ticket) -> None:
        """Free the place of a ticket whose answer nobody waits for; safe to repeat."""
        with self._changed:
            ticket.is_cancelled = True
            if ticket in self._waiting:
                self._waiting.remove(ticket)

    def prepare(self, served: ServedModel) -> None:
        """Load what a version needs that will be asked for; a base in this thread, beside the one in use."""
        self._model.fetch(served.base.folder)
        with self._changed:
            self._preload = served
            self._changed.notify()

    def go_to(self, place: Place) -> None:
        """Answer there as soon as what is in flight is done."""
        with self._changed:
            self._place = place
            self._changed.notify()

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests that are being answered."""
        return sum(len(lane.rows) for lane in list(self._lanes.values()))

    def _run(self) -> None:
        while self._wait_for_work():
            try:
                self._round()
                if self._has_answered:  # an idle round shows nothing: it does not ask the GPU
                    self.failures = 0
            except Exception as error:
                self.failures += 1
                self.is_broken |= self.failures >= MOST_FAILURES
                logger.exception("A round of answers ended by an error nobody foresaw")
                self._fail_everything(CannotAnswer(f"the server failed: {type(error).__name__}: {error}"))
            self._flush()
        self._fail_everything(CannotAnswer("the server is being stopped; try again later"))
        self._flush()

    def _wait_for_work(self) -> bool:
        """Return as soon as there is something to do, or is to be looked after; False: end."""
        with self._changed:
            if not (self._is_stopping or self._lanes or self._waiting or self._preload is not None):
                self._changed.wait(IDLE_SECONDS)
            if self._waiting and not self._lanes:
                self._changed.wait_for(lambda: not self._expected or self._is_stopping, GATHER_SECONDS)
            return not self._is_stopping

    def _round(self) -> None:
        self._has_answered = False
        self._keep_place()
        self._load_ahead()
        groups = self._next_groups()
        self._joining = [ticket for group in groups for ticket in group]
        for group in groups:
            self._join(group)
            del self._joining[: len(group)]
        for lane in list(self._lanes.values()):
            self._advance(lane)
        self._model.drop_unused(self._lanes.keys())

    def _keep_place(self) -> None:
        """Leave the device, or go back to it, when nothing is in flight."""
        base = self._model.base
        if base is not None and not self._lanes and not self._model.is_at(base, self._place):
            self._settle(base)

    def _settle(self, base: Path) -> bool:
        try:
            self._model.settle(base, self._place)
        except TrainboxError as error:
            logger.error("Will be loaded again when it is asked for: %s", error)
            return False
        return True

    def _load_ahead(self) -> None:
        with self._changed:
            served = self._preload
            if served is None or (self._model.base != served.base.folder and (self._lanes or self._waiting)):
                return  # those who ask bring their bases themselves
            self._preload = None
        if self._model.base == served.base.folder or self._settle(served.base.folder):
            self._can_use(served, ())

    def _next_groups(self) -> list[list[Ticket]]:
        """Take from the front of the queue what may join now, by version."""
        with self._changed:
            first = self._waiting[0] if self._waiting else None
        if first is None or self._room <= self.running or not self._is_settled(first):
            return []
        groups: dict[tuple[str, str], list[Ticket]] = {}
        room, widest = self._room - self.running, 0
        with self._changed:
            while self._waiting and room:
                ticket = self._waiting[0]
                key = (ticket.served.name, ticket.served.key)
                lane = self._lanes.get(key)
                widest = max(widest, len(ticket.prompt))
                count = sum(map(len, groups.values())) + 1
                is_too_much = count > 1 and widest * count > PREFILL_TOKENS
                is_closed = lane is not None and not lane.batch.takes_more
                if is_too_much or is_closed or ticket.served.base.folder != self._model.base:
                    break
                groups.setdefault(key, []).append(self._waiting.popleft())
                room -= 1
        return list(groups.values())

    def _is_settled(self, ticket: Ticket) -> bool:
        """Bring the base of the first ticket to its place, or tell that what is in flight comes first."""
        if self._model.is_at(ticket.served.base.folder, self._place):
            return True
        if self._lanes:
            return False
        try:
            self._model.settle(ticket.served.base.folder, self._place)
        except TrainboxError as error:
            self._refuse_first(ticket, error)
            return False
        return True

    def _refuse_first(self, ticket: Ticket, error: TrainboxError) -> None:
        with self._changed:
            if self._waiting and self._waiting[0] is ticket:
                self._waiting.popleft()
        self._pieces.append((ticket, Piece("", 0, error=error)))

    def _join(self, tickets: list[Ticket]) -> None:
        """Read the prompts of one version and give each its first token."""
        served = tickets[0].served
        if not self._can_use(served, tickets):
            return
        key = (served.name, served.key)
        lane = self._lanes.get(key) or self._new_lane(served)
        samplers = [Sampler(ticket.sampling) for ticket in tickets]
        try:
            tokens = lane.batch.join([ticket.prompt for ticket in tickets], samplers)
        except torch.OutOfMemoryError:
            tokens = None
        if tokens is None:
            self._make_do(tickets)
            return
        lane.rows += [Row.of(ticket) for ticket in tickets]
        self._lanes[key] = lane
        self._take(lane, tokens, first=len(lane.rows) - len(tickets))

    def _can_use(self, served: ServedModel, tickets: Sequence[Ticket]) -> bool:
        """Answer with this model from now on; what keeps it from being loaded is told to its tickets only."""
        try:
            self._model.use(served)
        except TrainboxError as error:
            logger.error("%s", error)
            self._pieces += [(ticket, Piece("", 0, error=error)) for ticket in tickets]
            return False
        return True

    def _new_lane(self, served: ServedModel) -> Lane:
        return Lane(served, Batch(self._model.model, served.base.template.pad_token_id), [])

    def _make_do(self, tickets: list[Ticket]) -> None:
        """Let tickets that the GPU's memory did not hold wait again, with fewer at once from now on."""
        free_memory()
        if len(tickets) == 1 and not self._lanes:
            error = CannotAnswer("the GPU's memory does not hold this request; send a shorter prompt")
            self._pieces.append((tickets[0], Piece("", 0, error=error)))
            return
        self._room = max(1, self.running, halved(len(tickets)) if not self._lanes else 0)
        logger.warning("The GPU's memory is short: answering %d requests at once", self._room)
        with self._changed:
            self._waiting.extendleft(reversed(tickets))

    def _advance(self, lane: Lane) -> None:
        """Give every row of a lane its next token."""
        self._model.use(lane.served)
        self._leave(lane, [row for row in lane.rows if not row.ticket.is_cancelled])
        if not lane.rows:
            return
        try:
            tokens = lane.batch.step()
        except torch.OutOfMemoryError:
            tokens = None
        if tokens is None:
            error = CannotAnswer("the GPU's memory became too short to go on; try again")
            self._pieces += [(row.ticket, Piece("", len(row.tokens), error=error)) for row in lane.rows]
            self._room = max(1, halved(len(lane.rows)))
            self._leave(lane, [])
            free_memory()
            return
        self._take(lane, tokens)

    def _take(self, lane: Lane, tokens: Sequence[int], first: int = 0) -> None:
        """Hand tokens to rows, from row `first` on; those that are complete leave."""
        self._has_answered = True
        going = lane.rows[:first]
        for row, token in zip(lane.rows[first:], tokens, strict=True):
            piece = row.take(token)
            if piece is not None:
                self._pieces.append((row.ticket, piece))
            if piece is None or not piece.is_last:
                going.append(row)
        self._leave(lane, going)

    def _leave(self, lane: Lane, staying: list[Row]) -> None:
        if len(staying) < len(lane.rows):
            stays = set(map(id, staying))
            lane.batch.keep([at for at, row in enumerate(lane.rows) if id(row) in stays])
            lane.rows = staying
        if not lane.rows:
            self._lanes.pop((lane.served.name, lane.served.key), None)
            if not self._lanes:
                self._room = self._max_batch

    def _fail_everything(self, error: TrainboxError) -> None:
        with self._changed:
            waiting, self._waiting = list(self._waiting), deque()
        for lane in self._lanes.values():
            self._pieces += [(row.ticket, Piece("", len(row.tokens), error=error)) for row in lane.rows]
        known = {id(row.ticket) for lane in self._lanes.values() for row in lane.rows}
        joining = [ticket for ticket in self._joining if id(ticket) not in known]
        self._pieces += [(ticket, Piece("", 0, error=error)) for ticket in (*joining, *waiting)]
        self._lanes.clear()
        self._joining = []

    def _flush(self) -> None:
        if self._pieces:
            pieces, self._pieces = self._pieces, []
            self._hand_out(pieces)
