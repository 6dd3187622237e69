"""From a request to its answer: looked up, counted, queued, and handed back piece by piece."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TypeVar, get_args

from starlette.requests import Request

from chat_template import ChatTemplate
from config import Config, Paths
from errors import ConfigError, IntegrityError, RecordRefused, TrainboxError, UsageError
from monitoring.events import Phase
from monitoring.training_status import Reading, read_status
from serving.batching import Engine
from serving.catalogue import BASE, CURRENT, Catalogue, ServedModel
from serving.openai_answers import Usage
from serving.openai_api import ApiError, Wish
from serving.tickets import Piece, QueueFull, Ticket

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.25
"""Time between two looks at which version is current and whether a run trains."""
TROUBLE_SECONDS = 5.0
"""Time until the next look where the last one failed: it may read gigabytes again."""
QUEUE_RETRY_SECONDS = 1
TRAINING_RETRY_SECONDS = 30
_OF_A_RUN = frozenset(get_args(Phase))

Result = TypeVar("Result")
Encode = Callable[[ChatTemplate], Sequence[Sequence[int]]]


class ClientGone(Exception):
    """Whoever asked does not wait any more."""


class Answers:
    """The answers to the prompts of one request, as they come."""

    def __init__(self, engine: Engine, served: ServedModel) -> None:
        self._engine = engine
        self._arrived: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()
        self.served = served
        self.tickets: list[Ticket] = []

    def receiver(self, index: int) -> Callable[[Piece], None]:
        """Return what takes the pieces of one prompt, in the thread of the event loop."""
        return lambda piece: self._arrived.put_nowait((index, piece))

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """Yield each piece with the number of its prompt; raise ApiError when there will be no answer."""
        missing = len(self.tickets)
        while missing:
            index, piece = await self._arrived.get()
            if piece.error is not None:
                raise api_error(piece.error)
            missing -= piece.is_last
            yield index, piece

    async def finished(self) -> list[Piece]:
        """Return the whole answers, in the order of their prompts; for requests that are not streamed."""
        found: dict[int, Piece] = {}
        async for index, piece in self.pieces():
            found[index] = piece
        return [found[index] for index in range(len(self.tickets))]

    def usage(self, completion_tokens: int) -> Usage:
        return Usage.of(sum(len(ticket.prompt) for ticket in self.tickets), completion_tokens)

    def cancel(self) -> None:
        """Free the places of what is not answered yet; safe to repeat."""
        for ticket in self.tickets:
            self._engine.cancel(ticket)


class Answering:
    """Takes requests for the models of a base folder."""

    def __init__(self, paths: Paths, config: Config, catalogue: Catalogue, engine: Engine) -> None:
        self._paths = paths
        self._config = config.serving
        self._engine = engine
        self._followed: str | None = None
        self._adopted: ServedModel | None = None
        self._trouble: str | None = None
        self._verifying = ThreadPoolExecutor(1, "verifying")
        self.catalogue = catalogue
        self.is_training = False
        """Whether a run is at work here, as of the last look."""

    async def begin(self, wish: Wish, encode: Encode) -> Answers:
        """Queue what a request asks; raise ApiError, or what the catalogue raises, when it cannot be."""
        wish.refuse_unsupported()
        if self.is_training and self._config.during_training == "refuse":
            message = "a run is training, and serving.during_training is 'refuse'; try again later"
            raise ApiError(503, message, code="training", retry_seconds=TRAINING_RETRY_SECONDS)
        with self._engine.expecting():
            found = await asyncio.to_thread(self._look_up, wish.model, encode, self.known)
            if found is not None:
                return self._queue(wish, *found)
        # To look through gigabytes takes long; requests for what is known already do not wait behind that.
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._verifying, self._look_up, wish.model, encode, self.find)
        assert found is not None
        return self._queue(wish, *found)

    def find(self, name: str) -> ServedModel:
        """Return the model of that name, as the catalogue does.

        When `current` has moved to a version on another base, `current` stays what it was before until the
        other base is loaded, too: nobody waits for that.
        """
        return self._adopted_for(name) or self.catalogue.find(name)

    def known(self, name: str) -> ServedModel | None:
        """Return what `find` would, at once; None where its bytes are to be looked through first."""
        return self._adopted_for(name) or self.catalogue.known(name)

    def name_of(self, name: str) -> str:
        """Return which model answers to a name, ``base`` or a version; raises as `Catalogue.known` does."""
        adopted = self._adopted_for(name)
        if adopted is not None:
            return adopted.name
        version = self.catalogue.resolve(name)
        return BASE if version is None else version.name

    def _adopted_for(self, name: str) -> ServedModel | None:
        adopted = self._adopted
        stays = name == CURRENT and adopted is not None and not self.catalogue.is_on(adopted.base)
        return adopted if stays else None

    def current(self) -> tuple[str | None, str | None]:
        """Return what answers as `current`, and what is wrong with it; None for what there is not."""
        try:
            known = self.known(CURRENT)
        except (TrainboxError, OSError) as error:
            return None, str(error)
        if known is None:
            return None, self._trouble or "its bytes are being looked through"
        return known.name, self._trouble

    def see_training(self) -> None:
        """See whether a run trains, and make room for it if so configured."""
        self.is_training = trains(read_status(self._paths))
        leaves = self.is_training and self._config.during_training != "share"
        self._engine.go_to("cpu" if leaves else "accelerator")

    def see_current(self) -> None:
        """See which version is current, and load what it needs before it is asked for."""
        try:
            pointer = self.catalogue.pointer()
            served = None if pointer == self._followed else self.catalogue.find(CURRENT)
        except (TrainboxError, OSError) as error:
            self._trouble = str(error)
            raise
        self._trouble = None
        if served is None:
            return
        self._engine.prepare(served)
        self._adopted, self._followed = served, pointer
        logger.info("Answering with %s as current", served.name)

    async def follow(self) -> None:
        """Keep looking at both until cancelled; to load a base takes longer than a run may wait for its room.

        The looks have threads of their own: requests wait for none of them.
        """
        looks = (self.see_training, self.see_current)
        threads = ThreadPoolExecutor(len(looks), "following")
        try:
            await asyncio.gather(*(self._keep(look, threads) for look in looks))
        finally:
            threads.shutdown(wait=False, cancel_futures=True)

    async def _keep(self, look: Callable[[], None], threads: Executor) -> None:
        """Look again and again, whatever a look ends by; what is wrong is logged once."""
        trouble = ""
        while True:
            found = ""
            try:
                await asyncio.get_running_loop().run_in_executor(threads, look)
            except (TrainboxError, OSError) as error:
                found = str(error)
                if found != trouble:
                    logger.error("Cannot follow what goes on here: %s", error)
            except Exception as error:
                found = f"{type(error).__name__}: {error}"
                if found != trouble:
                    logger.exception("Cannot follow what goes on here, and will look again")
            trouble = found
            await asyncio.sleep(TROUBLE_SECONDS if trouble else LOOK_SECONDS)

    def _look_up(
        self, name: str, encode: Encode, find: Callable[[str], ServedModel | None]
    ) -> tuple[ServedModel, Sequence[Sequence[int]]] | None:
        served = find(name)
        if served is None:
            return None
        prompts = encode(served.base.template)
        for prompt in prompts:
            self._refuse_length(served, prompt)
        return served, prompts

    def _queue(self, wish: Wish, served: ServedModel, prompts: Sequence[Sequence[int]]) -> Answers:
        answers = Answers(self._engine, served)
        answers.tickets = [
            Ticket(
                *(served, prompt, self._limit(wish, served, prompt), answers.receiver(index)),
                sampling=wish.sampling,
                stop=wish.stops,
                is_streamed=bool(wish.stream),
            )
            for index, prompt in enumerate(prompts)
        ]
        self._engine.submit(answers.tickets)
        return answers

    def _refuse_length(self, served: ServedModel, prompt: Sequence[int]) -> None:
        longest, where = self._config.max_prompt_tokens, "serving.max_prompt_tokens"
        window = served.base.window_tokens
        if window is not None and window - 1 < longest:
            longest, where = window - 1, "the model's context window"
        if not 1 <= len(prompt) <= longest:
            message = f"found a prompt of {len(prompt)} tokens, expected 1 to {longest} ({where})"
            raise ApiError(400, message, code="context_length_exceeded", param="prompt")

    def _limit(self, wish: Wish, served: ServedModel, prompt: Sequence[int]) -> int:
        """Return how long an answer may become; it also ends where the context window does."""
        longest = self._config.max_output_tokens
        wanted = longest if wish.wanted_tokens is None else wish.wanted_tokens
        if wanted > longest:
            message = f"max_tokens: found {wanted}, expected at most {longest} (serving.max_output_tokens)"
            raise ApiError(400, message, code="invalid_value", param="max_tokens")
        window = served.base.window_tokens
        return wanted if window is None else min(wanted, window - len(prompt))


def trains(reading: Reading | None) -> bool:
    """Tell whether a run is at work; a daemon that is itself only starting has none yet."""
    if reading is None or not reading.is_running:
        return False
    return reading.status.job_id is not None and reading.status.state in _OF_A_RUN


async def unless_gone(request: Request, answers: Answers, work: Awaitable[Result]) -> Result:
    """Return what `work` returns, and raise ClientGone when nobody waits; frees all places if it raises."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_until_gone(request))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    except BaseException:
        answers.cancel()
        raise
    finally:
        for task in (working, watching):
            task.cancel()


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def api_error(error: TrainboxError) -> ApiError:
    """Say for a caller what went wrong here."""
    if isinstance(error, QueueFull):
        return ApiError(429, str(error), code="queue_full", retry_seconds=QUEUE_RETRY_SECONDS)
    if isinstance(error, RecordRefused):
        return ApiError(400, str(error), param=error.field)
    if isinstance(error, UsageError) and not isinstance(error, ConfigError):
        return ApiError(404, str(error), code="model_not_found", param="model")
    code = "damaged" if isinstance(error, IntegrityError) else "unavailable"
    return ApiError(503, str(error), code=code)
