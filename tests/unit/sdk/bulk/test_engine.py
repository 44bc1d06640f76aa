"""Bulk submission: an invalid task does not affect the others, and errors and stops end a run cleanly."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import asg_gateway
import httpx
import pytest
from asg_gateway import submit_many
from asg_gateway._bulk.engine import run, submit_chunk
from asg_gateway._bulk.http import HttpSender
from asg_gateway._bulk.items import Chunk, chunks
from asg_gateway._bulk.sources import Row
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.sdk.bulk.gateway import Gateway, task


def chunks_of(names: list[str], size: int = 1000) -> list[Chunk]:
    rows = [Row(number, task(name)) for number, name in enumerate(names, 1)]
    return list(chunks(rows, "", size))


async def collect(client: asg_gateway.AsyncASGGatewayClient, source: Iterator[Chunk], finished: list[Chunk]) -> None:
    """Run the source, and append each chunk to `finished` when its outcome is known."""
    async for chunk, _ in run(HttpSender(client, None), source, concurrency=2):
        finished.append(chunk)


@given(st.lists(st.sampled_from(["good", "bad"]), min_size=1, max_size=300), st.booleans())
@settings(max_examples=40)
async def test_good_tasks_are_accepted_once_and_bad_ones_reported(kinds: list[str], omit_errors: bool) -> None:
    """Property: the gateway need not say which tasks are bad, and a second submission accepts nothing more."""
    gateway = Gateway(omit_errors=omit_errors)
    (chunk,) = chunks_of([f"{number}-{kind}" for number, kind in enumerate(kinds)])
    async with gateway.client() as client:
        for _ in range(2):
            outcome = await submit_chunk(HttpSender(client, None), chunk.items)
            bad = [number for number, kind in enumerate(kinds, 1) if kind == "bad"]
            assert [item.number for item, _ in outcome.refused] == bad
            good = sorted(item.number for _, items in outcome.accepted for item in items)
            assert good == [number for number, kind in enumerate(kinds, 1) if kind == "good"]
            assert set(gateway.accepted.values()) <= {1}
            assert len(gateway.accepted) == len(good)


async def test_reported_faults_omit_the_index_in_the_request() -> None:
    """The index means nothing to the reader of the report."""
    async with Gateway().client() as client:
        outcome = await submit_chunk(HttpSender(client, None), chunks_of(["a", "bad"])[0].items)
    assert [faults for _, faults in outcome.refused] == [[("data_url", "data_url must be good")]]


@pytest.mark.parametrize(
    ("status", "sentence", "error"),
    [
        (403, "quota exhausted", asg_gateway.QuotaExhaustedError),
        (401, "the API key is unknown or revoked", asg_gateway.AuthenticationError),
        (503, "unavailable", asg_gateway.ServerError),
        (400, "callback_url is not one of your registered webhook URLs", asg_gateway.InvalidRequestError),
        (422, "this idempotency key was used with another body", asg_gateway.InvalidRequestError),
    ],
)
async def test_error_that_is_not_about_one_task_ends_the_run(
    status: int, sentence: str, error: type[Exception]
) -> None:
    """No further chunk starts. The chunks in flight are finished and reported before the error is raised."""
    gateway = Gateway(fail_from=3, failure=(status, sentence))
    finished: list[Chunk] = []
    async with gateway.client() as client:
        with pytest.raises(error, match=sentence):
            await collect(client, iter(chunks_of(list("abcdefghij"), 1)), finished)
    assert len(finished) == 2
    assert gateway.requests <= 4


async def test_run_uses_concurrency_and_does_not_exceed_it() -> None:
    in_flight, most = 0, 0
    gateway = Gateway()

    async def handler(request: httpx.Request) -> httpx.Response:
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        await asyncio.sleep(0.01)
        in_flight -= 1
        return gateway(request)

    client = asg_gateway.AsyncASGGatewayClient("k", transport=httpx.MockTransport(handler))
    async with client:
        async for _ in run(HttpSender(client, None), iter(chunks_of([*"abcdefghijklmnop"], 1)), concurrency=3):
            pass
    assert most == 3
    assert len(gateway.accepted) == 16


async def test_stop_ends_the_run_even_if_the_source_is_blocked() -> None:
    source_released, stop = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def source() -> Iterator[Chunk]:
        yield from chunks_of(["a"])
        asyncio.run_coroutine_threadsafe(source_released.wait(), loop).result()

    finished = []
    async with Gateway().client() as client:
        async for chunk, _ in run(HttpSender(client, None), source(), concurrency=2, stop=stop):
            finished.append(chunk)
            stop.set()
    source_released.set()
    assert len(finished) == 1


async def test_error_of_the_source_is_raised_after_earlier_chunks_are_submitted() -> None:

    def source() -> Iterator[Chunk]:
        yield from chunks_of(["a"])
        raise ValueError("source failed")

    finished: list[Chunk] = []
    async with Gateway().client() as client:
        with pytest.raises(ValueError, match="source failed"):
            await collect(client, source(), finished)
    assert len(finished) == 1


async def test_submit_many_returns_ids_and_refusals_by_index() -> None:
    """A repeat with the same key accepts nothing more. A task keeps its own key."""
    gateway = Gateway()
    tasks = [task(f"{index}") for index in range(2500)]
    tasks[7] = task("bad")
    tasks[9]["idempotency_key"] = "mine"
    async with gateway.client() as client:
        for _ in range(2):
            ids: dict[int, str] = {}
            refused: dict[int, Any] = {}
            async for part in submit_many(client, iter(tasks), idempotency_key="k"):
                ids |= part.task_ids
                refused |= part.refused
            assert sorted(ids) == [index for index in range(2500) if index != 7]
            assert refused == {7: (("data_url", "data_url must be good"),)}
    assert ids[9] == "tsk_mine"
    assert len(gateway.accepted) == 2499
    assert set(gateway.accepted.values()) == {1}


async def test_submit_many_reads_an_asynchronous_generator_in_the_event_loop() -> None:
    """A generator that waits does not delay requests, and it is closed when the caller stops early."""
    gateway, closed, loop = Gateway(), asyncio.Event(), asyncio.get_running_loop()

    async def source() -> AsyncIterator[dict[str, Any]]:
        try:
            for index in range(2500):
                if index == 2400:
                    while len(gateway.accepted) < 2000:
                        await asyncio.sleep(0)
                assert asyncio.get_running_loop() is loop
                yield task(f"{index}")
        finally:
            closed.set()

    async with gateway.client() as client:
        parts = [part async for part in submit_many(client, source(), idempotency_key="k")]
        assert sorted(index for part in parts for index in part.task_ids) == list(range(2500))
        assert json.loads(json.dumps(parts[0]))["results"][0]["task_count"] == 1000
        closed.clear()
        async with contextlib.aclosing(submit_many(client, source(), idempotency_key="k", concurrency=1)) as again:
            await anext(again)
        await asyncio.wait_for(closed.wait(), 5)


async def test_error_of_an_asynchronous_generator_is_raised_after_earlier_chunks_are_submitted() -> None:
    async def source() -> AsyncIterator[dict[str, Any]]:
        for index in range(1500):
            yield task(f"{index}")
        raise LookupError("source failed")

    gateway = Gateway()
    async with gateway.client() as client:
        with pytest.raises(LookupError, match="source failed"):
            async for _ in submit_many(client, source(), idempotency_key="k"):
                pass
    assert len(gateway.accepted) == 1000


@pytest.mark.parametrize("invalid", [{"concurrency": 0}, {"idempotency_key": ""}])
async def test_submit_many_refuses_invalid_arguments_before_sending(invalid: dict[str, Any]) -> None:
    gateway = Gateway()
    async with gateway.client() as client:
        with pytest.raises(ValueError, match="must be"):
            await anext(submit_many(client, [task("a")], **invalid))
    assert gateway.requests == 0
