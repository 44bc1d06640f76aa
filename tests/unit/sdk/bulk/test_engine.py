"""One bad task does not sink its neighbours, and what stops a run stops it cleanly."""

import asyncio
from collections.abc import Iterator
from typing import Any

import asg_gateway
import httpx
import pytest
from asg_gateway import submit_many
from asg_gateway._bulk.engine import run, submit_chunk
from asg_gateway._bulk.items import Chunk, chunks
from asg_gateway._bulk.sources import Row
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.sdk.bulk.gateway import Gateway, task


def cut(names: list[str], size: int = 1000) -> list[Chunk]:
    rows = [Row(number, task(name)) for number, name in enumerate(names, 1)]
    return list(chunks(rows, "", size))


async def collect(
    client: asg_gateway.AsyncASGGatewayClient, source: Iterator[Chunk], seen: list[Chunk], **options: Any
) -> None:
    async for chunk, _ in run(client, source, callback_url=None, concurrency=2, **options):
        seen.append(chunk)


@given(st.lists(st.sampled_from(["good", "bad"]), min_size=1, max_size=300), st.booleans())
@settings(max_examples=40)
async def test_the_good_are_accepted_once_and_the_bad_are_named(kinds: list[str], mute: bool) -> None:
    """Law: whether or not the gateway says which ones are bad; and again, nothing more is accepted."""
    gateway = Gateway(mute=mute)
    (chunk,) = cut([f"{number}-{kind}" for number, kind in enumerate(kinds)])
    async with gateway.client() as client:
        for _ in range(2):
            outcome = await submit_chunk(client, chunk.items, None)
            bad = [number for number, kind in enumerate(kinds, 1) if kind == "bad"]
            assert [item.number for item, _ in outcome.refused] == bad
            good = sorted(item.number for _, items in outcome.accepted for item in items)
            assert good == [number for number, kind in enumerate(kinds, 1) if kind == "good"]
            assert set(gateway.accepted.values()) <= {1}
            assert len(gateway.accepted) == len(good)


async def test_faults_are_told_as_of_the_line() -> None:
    """The place in the request means nothing to whoever reads the report."""
    async with Gateway().client() as client:
        outcome = await submit_chunk(client, cut(["a", "bad"])[0].items, None)
    assert [faults for _, faults in outcome.refused] == [[("data_url", "data_url must be good")]]


@pytest.mark.parametrize(
    ("status", "sentence", "error"),
    [
        (403, "quota exhausted", asg_gateway.QuotaExhaustedError),
        (401, "the API key is unknown or revoked", asg_gateway.AuthenticationError),
        (503, "away", asg_gateway.ServerError),
        (400, "callback_url is not one of your registered webhook URLs", asg_gateway.InvalidRequestError),
        (422, "this idempotency key was used with another body", asg_gateway.InvalidRequestError),
    ],
)
async def test_what_is_not_about_one_task_stops(status: int, sentence: str, error: type[Exception]) -> None:
    """No chunk is begun after it, what is in flight is finished and told, then it is raised."""
    gateway = Gateway(fails=3, failure=(status, sentence))
    seen: list[Chunk] = []
    async with gateway.client() as client:
        with pytest.raises(error, match=sentence):
            await collect(client, iter(cut(list("abcdefghij"), 1)), seen)
    assert len(seen) == 2
    assert gateway.requests <= 4


async def test_no_more_than_allowed_are_in_flight() -> None:
    """Concurrency is a limit, and it is used."""
    flying, most = 0, 0
    gateway = Gateway()

    async def handler(request: httpx.Request) -> httpx.Response:
        nonlocal flying, most
        flying += 1
        most = max(most, flying)
        await asyncio.sleep(0.01)
        flying -= 1
        return gateway(request)

    client = asg_gateway.AsyncASGGatewayClient("k", transport=httpx.MockTransport(handler))
    async with client:
        async for _ in run(client, iter(cut([*"abcdefghijklmnop"], 1)), callback_url=None, concurrency=3):
            pass
    assert most == 3
    assert len(gateway.accepted) == 16


async def test_a_stop_begins_nothing_new() -> None:
    """A source that is still being waited for does not hold it up."""
    forever, stop = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def source() -> Iterator[Chunk]:
        yield from cut(["a"])
        asyncio.run_coroutine_threadsafe(forever.wait(), loop).result()

    seen = []
    async with Gateway().client() as client:
        async for each in run(client, source(), callback_url=None, concurrency=2, stop=stop):
            seen.append(each)
            stop.set()
    assert len(seen) == 1
    forever.set()


async def test_a_source_that_breaks_is_told_after_what_is_in_flight() -> None:
    """The chunks before it are submitted."""

    def source() -> Iterator[Chunk]:
        yield from cut(["a"])
        raise ValueError("no more")

    seen: list[Chunk] = []
    async with Gateway().client() as client:
        with pytest.raises(ValueError, match="no more"):
            await collect(client, source(), seen)
    assert len(seen) == 1


async def test_submit_many() -> None:
    """Ids and refusals by index; with the same key nothing twice; tasks and keys are sent as given."""
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


@pytest.mark.parametrize("wrong", [{"concurrency": 0}, {"idempotency_key": ""}])
async def test_submit_many_arguments(wrong: dict[str, Any]) -> None:
    """Told before anything is sent."""
    async with Gateway().client() as client:
        with pytest.raises(ValueError, match="must be"):
            await anext(submit_many(client, [task("a")], **wrong))
