"""`deadline` bounds a whole request: connect, send, every byte of the answer, retries and pauses."""

import asyncio
import socket
import time
from collections.abc import Callable

import asg_gateway
import pytest
from asg_gateway import ASGGatewayClient, AsyncASGGatewayClient

from tests.unit.sdk.gateway import CALL
from tests.unit.sdk.servers import AsyncTaskServer, dripping

DEADLINE = 0.6
NO_HEAD = b"HTTP/1.1 202 Accepted\r\nX-Slow: "
NO_END = b"HTTP/1.1 202 Accepted\r\nContent-Length: 100000\r\n\r\n"
CHUNKED = b"HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\n1;"

Submit = Callable[[str], None]


def submit(url: str) -> None:
    with ASGGatewayClient("k", base_url=url, deadline=DEADLINE) as client:
        client.submit_task(**CALL)


def submit_async(url: str) -> None:
    async def call() -> None:
        async with AsyncASGGatewayClient("k", base_url=url, deadline=DEADLINE) as client:
            await client.submit_task(**CALL)

    asyncio.run(call())


def submit_large(url: str) -> None:
    with ASGGatewayClient("k", base_url=url, deadline=DEADLINE) as client:
        client.submit_batch([{"pad": "x" * 7_000_000}])


def submit_large_async(url: str) -> None:
    async def call() -> None:
        async with AsyncASGGatewayClient("k", base_url=url, deadline=DEADLINE) as client:
            await client.submit_batch([{"pad": "x" * 7_000_000}])

    asyncio.run(call())


async def assert_ends_at_deadline(call: Submit, url: str) -> None:
    began = time.monotonic()
    with pytest.raises(asg_gateway.TimedOutError) as caught:
        await asyncio.to_thread(call, url)
    assert DEADLINE * 0.9 <= time.monotonic() - began < DEADLINE + 1
    assert str(caught.value) == f"no complete answer from {url} within the deadline of 0.6 s"
    assert caught.value.idempotency_key


@pytest.mark.timeout(20)
@pytest.mark.parametrize("head", [b"", NO_HEAD, NO_END, CHUNKED], ids=["nothing", "headers", "body", "chunks"])
@pytest.mark.parametrize("call", [submit, submit_async])
async def test_answer_that_drips_ends_at_the_deadline(call: Submit, head: bytes) -> None:
    """Each byte arrives well within `timeout`."""
    async with dripping(head=head) as url:
        await assert_ends_at_deadline(call, url)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("call", [submit_large, submit_large_async])
async def test_request_that_is_read_slowly_ends_at_the_deadline(call: Submit) -> None:
    async with dripping(head=b"", unread=True) as url:
        await assert_ends_at_deadline(call, url)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("call", [submit, submit_async])
async def test_connect_ends_at_the_deadline(call: Submit) -> None:
    """The queue of the listening socket is full, so further connections get no answer."""
    with socket.socket() as listening, socket.socket() as first, socket.socket() as second:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(listening.getsockname())
        await assert_ends_at_deadline(call, f"http://127.0.0.1:{listening.getsockname()[1]}")


async def test_deadline_does_not_include_the_wait_for_other_calls() -> None:
    """The third call starts after the deadline of all three."""
    async with (
        AsyncTaskServer(0.4).running() as url,
        AsyncASGGatewayClient("k", base_url=url, deadline=DEADLINE, max_connections=1) as client,
    ):
        assert len(await asyncio.gather(*[client.submit_task(**CALL) for _ in range(3)])) == 3
