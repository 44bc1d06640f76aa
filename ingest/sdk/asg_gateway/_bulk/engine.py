"""Chunks to the gateway: several in flight, and one bad task out of its neighbours' way."""

import asyncio
import contextlib
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from asg_gateway._async_client import AsyncASGGatewayClient
from asg_gateway._bulk.checks import Fault
from asg_gateway._bulk.items import Chunk, Item, digest_of
from asg_gateway._errors import ASGGatewayError, InvalidRequestError
from asg_gateway._results import BatchResult

_PLACE = re.compile(r"tasks\[([0-9]+)\]\.?")


@dataclass
class Outcome:
    """What became of a chunk: results with the items they are for, and items that the gateway refused."""

    accepted: list[tuple[BatchResult, Sequence[Item]]] = field(default_factory=list)
    refused: list[tuple[Item, list[Fault]]] = field(default_factory=list)


async def submit_chunk(client: AsyncASGGatewayClient, items: Sequence[Item], callback_url: str | None) -> Outcome:
    """Submit the items, as few requests as it takes; those that the gateway refuses are left out.

    Raises:
        ASGGatewayError: for a reason that is not in single tasks. Submitting the same again resumes.
    """
    outcome = Outcome()
    waiting = [items] if items else []
    while waiting:
        part = waiting.pop()
        key = digest_of(item.identity for item in part)
        try:
            result = await client.submit_batch(
                [item.task for item in part], callback_url=callback_url, idempotency_key=key
            )
        except InvalidRequestError as error:
            waiting += _without_refused(part, error, outcome)
        else:
            outcome.accepted.append((result, part))
    outcome.refused.sort(key=lambda each: each[0].number)
    return outcome


def _without_refused(part: Sequence[Item], error: InvalidRequestError, outcome: Outcome) -> list[Sequence[Item]]:
    """What is left to send; raises the error where it is not about single tasks."""
    faults = error.errors or ((error.message.split(" ")[0], error.message),)
    if error.status not in (400, 413) or any(field == "callback_url" for field, _ in faults):
        raise error
    blamed = _blamed(faults, len(part))
    if blamed:
        outcome.refused += [(part[index], wrong) for index, wrong in blamed.items()]
        left = [item for index, item in enumerate(part) if index not in blamed]
        return [left] if left else []
    if len(part) == 1:
        outcome.refused.append((part[0], [("", error.message)]))
        return []
    # The gateway does not say which: too many errors to list, or a body that a proxy finds too large.
    middle = len(part) // 2
    return [part[middle:], part[:middle]]


def _blamed(faults: Sequence[Fault], count: int) -> dict[int, list[Fault]]:
    """Index of the task to what is wrong with it, with the task's place left out."""
    blamed: dict[int, list[Fault]] = {}
    for path, sentence in faults:
        place = _PLACE.match(path)
        if place and int(place[1]) < count:
            fault = (path[place.end() :], sentence.replace(place[0], "", 1))
            blamed.setdefault(int(place[1]), []).append(fault)
    return blamed


async def run(
    client: AsyncASGGatewayClient,
    chunks: Iterator[Chunk],
    *,
    callback_url: str | None,
    concurrency: int,
    done: Callable[[Chunk], bool] = lambda _: False,
    stop: asyncio.Event | None = None,
) -> AsyncIterator[tuple[Chunk, Outcome | None]]:
    """Each chunk with its outcome as it is known; None where `done` says that nothing is left to do.

    After `stop` no chunk is begun. After an error neither; what is in flight is finished first, then it is raised.
    """
    stop = stop or asyncio.Event()
    stopping = asyncio.create_task(stop.wait())
    reader = _Reader(chunks)
    flight = _Flight(client, callback_url)
    try:
        while True:
            go_on = not (reader.ended or flight.failure or stop.is_set())
            room = go_on and len(flight.chunks) < concurrency
            waiting = {*flight.chunks, *((reader.upcoming(), stopping) if room else ())}
            if not waiting:
                break
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if room and (chunk := reader.take()) is not None:
                if chunk.items and not done(chunk):
                    flight.begin(chunk)
                else:
                    yield chunk, None
            for landed in flight.land():
                yield landed
        if failure := flight.failure or reader.failure:
            raise failure
    finally:
        for task in (stopping, *flight.chunks):
            task.cancel()
        await asyncio.gather(stopping, *flight.chunks, return_exceptions=True)


class _Flight:
    """The chunks under way, by task; `failure` is the first that was not about single tasks."""

    def __init__(self, client: AsyncASGGatewayClient, callback_url: str | None) -> None:
        self.chunks: dict[asyncio.Future[Any], Chunk] = {}
        self.failure: ASGGatewayError | None = None
        self._client = client
        self._callback_url = callback_url

    def begin(self, chunk: Chunk) -> None:
        task = asyncio.create_task(submit_chunk(self._client, chunk.items, self._callback_url))
        self.chunks[task] = chunk

    def land(self) -> Iterator[tuple[Chunk, Outcome]]:
        for task in [task for task in self.chunks if task.done()]:
            chunk = self.chunks.pop(task)
            try:
                outcome = task.result()
            except ASGGatewayError as error:
                self.failure = self.failure or error
            else:
                yield chunk, outcome


class _Reader:
    """Reads chunks in a thread, one ahead, so that a slow source holds no request up.

    The thread is a daemon's: a source that never ends, such as a terminal, must not keep the process from ending.
    """

    def __init__(self, chunks: Iterator[Chunk]) -> None:
        self.ended = False
        self.failure: Exception | None = None
        self._chunks = chunks
        self._upcoming: asyncio.Future[Chunk | None] | None = None

    def upcoming(self) -> "asyncio.Future[Chunk | None]":
        """Done when `take` has something to take."""
        if self._upcoming is None:
            self._upcoming = asyncio.get_running_loop().create_future()
            threading.Thread(target=self._read, args=(self._upcoming,), name="asg-submit-reader", daemon=True).start()
        return self._upcoming

    def take(self) -> Chunk | None:
        """The chunk that was read, if one was."""
        if not self.upcoming().done():
            return None
        future, self._upcoming = self.upcoming(), None
        try:
            chunk = future.result()
        except Exception as error:  # noqa: BLE001 - raised by `run`, after what is in flight
            chunk, self.failure = None, error
        if chunk is None:
            self.ended = True
        else:
            self.upcoming()
        return chunk

    def _read(self, future: "asyncio.Future[Chunk | None]") -> None:
        chunk, failed = None, None
        try:
            chunk = next(self._chunks, None)
        except Exception as error:  # noqa: BLE001 - handed over
            failed = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            future.get_loop().call_soon_threadsafe(_settle, future, chunk, failed)


def _settle(future: "asyncio.Future[Chunk | None]", chunk: Chunk | None, error: Exception | None) -> None:
    if future.cancelled():
        return
    if error is None:
        future.set_result(chunk)
    else:
        future.set_exception(error)
