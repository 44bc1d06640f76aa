"""Sends chunks to the service, several at a time. A refused task does not affect its neighbours."""

import asyncio
import contextlib
import re
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from asg_gateway._bulk.items import Chunk, Item, digest_of
from asg_gateway._bulk.transport import Accepted, Sender
from asg_gateway._checks import Fault
from asg_gateway._errors import ASGGatewayError, InvalidRequestError, InvalidTaskError

_ITEM_PREFIX = re.compile(r"tasks\[([0-9]+)\]\.?")


@dataclass
class Outcome:
    """The outcome of a chunk: results with their items, and the items that were refused."""

    accepted: list[Accepted] = field(default_factory=list)
    refused: list[tuple[Item, list[Fault]]] = field(default_factory=list)


async def submit_chunk(sender: Sender, items: Sequence[Item]) -> Outcome:
    """Submit the items in as few batches as possible, without those that are refused.

    Raises:
        ASGGatewayError: a problem that is not one of single tasks. Submitting the same items again resumes.
    """
    outcome = Outcome()
    waiting = [items] if items else []
    while waiting:
        part = waiting.pop()
        try:
            outcome.accepted += await sender.send(part, digest_of(item.identity for item in part))
        except (InvalidRequestError, InvalidTaskError) as error:
            waiting += _without_refused(part, error, outcome)
    outcome.refused.sort(key=lambda refusal: refusal[0].number)
    return outcome


def _without_refused(
    part: Sequence[Item], error: InvalidRequestError | InvalidTaskError, outcome: Outcome
) -> list[Sequence[Item]]:
    """Return the items that still have to be sent. Raises the error if it is not about single tasks."""
    message = str(error) if isinstance(error, InvalidTaskError) else error.message
    faults = error.errors or ((message.split(" ")[0], message),)
    is_other = isinstance(error, InvalidRequestError) and error.status not in (400, 413)
    if is_other or any(field == "callback_url" for field, _ in faults):
        raise error
    by_index = _faults_by_index(faults, len(part))
    if by_index:
        outcome.refused += [(part[index], item_faults) for index, item_faults in by_index.items()]
        remaining = [item for index, item in enumerate(part) if index not in by_index]
        return [remaining] if remaining else []
    if len(part) == 1:
        outcome.refused.append((part[0], [("", message)]))
        return []
    # The gateway does not say which item: it has too many errors to list, or a proxy refuses the size.
    middle = len(part) // 2
    return [part[middle:], part[:middle]]


def _faults_by_index(faults: Sequence[Fault], count: int) -> dict[int, list[Fault]]:
    """Faults by the index of their task, with the index removed from their texts."""
    by_index: dict[int, list[Fault]] = {}
    for path, sentence in faults:
        prefix = _ITEM_PREFIX.match(path)
        if prefix and int(prefix[1]) < count:
            subject = "" if prefix[0].endswith(".") else "the task"
            fault = (path[prefix.end() :], sentence.replace(prefix[0], subject, 1))
            by_index.setdefault(int(prefix[1]), []).append(fault)
    return by_index


async def run(
    sender: Sender,
    chunks: Iterator[Chunk] | AsyncIterator[Chunk],
    *,
    concurrency: int,
    done: Callable[[Chunk], bool] = lambda _: False,
    stop: asyncio.Event | None = None,
) -> AsyncIterator[tuple[Chunk, Outcome | None]]:
    """Yield each chunk with its outcome when it is known; None if `done` says that the chunk is finished already.

    After `stop`, or after an error, no further chunk starts. Chunks in flight are finished, then the error is raised.
    """
    stop = stop or asyncio.Event()
    stopping = asyncio.create_task(stop.wait())
    reader = _Reader(chunks)
    in_flight = _InFlight(sender)
    try:
        while True:
            may_start = not (reader.ended or in_flight.failure or stop.is_set())
            has_slot = may_start and len(in_flight.chunks) < concurrency
            waiting = {*in_flight.chunks, *((reader.upcoming(), stopping) if has_slot else ())}
            if not waiting:
                break
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if has_slot and (chunk := reader.take()) is not None:
                if chunk.items and not done(chunk):
                    in_flight.start(chunk)
                else:
                    yield chunk, None
            for finished in in_flight.take_finished():
                yield finished
        if failure := in_flight.failure or reader.failure:
            raise failure
    finally:
        for task in (stopping, *in_flight.chunks):
            task.cancel()
        await asyncio.gather(stopping, *in_flight.chunks, return_exceptions=True)
        await reader.close()


class _InFlight:
    """The chunks in flight, by task; `failure` is the first error that was not about single tasks."""

    def __init__(self, sender: Sender) -> None:
        self.chunks: dict[asyncio.Future[Any], Chunk] = {}
        self.failure: ASGGatewayError | None = None
        self._sender = sender

    def start(self, chunk: Chunk) -> None:
        task = asyncio.create_task(submit_chunk(self._sender, chunk.items))
        self.chunks[task] = chunk

    def take_finished(self) -> Iterator[tuple[Chunk, Outcome]]:
        for task in [task for task in self.chunks if task.done()]:
            chunk = self.chunks.pop(task)
            try:
                outcome = task.result()
            except ASGGatewayError as error:
                self.failure = self.failure or error
            else:
                yield chunk, outcome


class _Reader:
    """Reads chunks, one ahead, so that a slow source does not delay requests: an iterator in a thread.

    It is a daemon thread: a source that never ends, such as a terminal, must not keep the process alive.
    """

    def __init__(self, chunks: Iterator[Chunk] | AsyncIterator[Chunk]) -> None:
        self.ended = False
        self.failure: Exception | None = None
        self._chunks = chunks
        self._upcoming: asyncio.Future[Chunk | None] | None = None

    def upcoming(self) -> "asyncio.Future[Chunk | None]":
        """Return a future that is done when `take` can return a chunk."""
        if self._upcoming is None and isinstance(self._chunks, AsyncIterator):
            self._upcoming = asyncio.ensure_future(_next(self._chunks))
        elif self._upcoming is None:
            self._upcoming = asyncio.get_running_loop().create_future()
            arguments = (self._chunks, self._upcoming)
            threading.Thread(target=_read, args=arguments, name="asg-submit-reader", daemon=True).start()
        return self._upcoming

    async def close(self) -> None:
        """Stop reading an asynchronous source. A thread ends when its source does."""
        if self._upcoming is not None:
            self._upcoming.cancel()
            await asyncio.gather(self._upcoming, return_exceptions=True)
        if isinstance(self._chunks, AsyncGenerator):
            await self._chunks.aclose()

    def take(self) -> Chunk | None:
        """Return the chunk that was read; None if there is none."""
        if not self.upcoming().done():
            return None
        future, self._upcoming = self.upcoming(), None
        try:
            chunk = future.result()
        except Exception as error:  # noqa: BLE001 - `run` raises it after the chunks in flight
            chunk, self.failure = None, error
        if chunk is None:
            self.ended = True
        else:
            self.upcoming()
        return chunk


async def _next(chunks: AsyncIterator[Chunk]) -> Chunk | None:
    return await anext(chunks, None)


def _read(chunks: Iterator[Chunk], future: "asyncio.Future[Chunk | None]") -> None:
    chunk, failure = None, None
    try:
        chunk = next(chunks, None)
    except Exception as error:  # noqa: BLE001 - passed to the event loop
        failure = error
    with contextlib.suppress(RuntimeError):  # the loop is closed, so no task waits
        future.get_loop().call_soon_threadsafe(_settle, future, chunk, failure)


def _settle(future: "asyncio.Future[Chunk | None]", chunk: Chunk | None, error: Exception | None) -> None:
    if future.cancelled():
        return
    if error is None:
        future.set_result(chunk)
    else:
        future.set_exception(error)
