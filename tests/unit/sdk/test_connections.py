"""One client in many places: forked processes, threads, and thousands of calls at once."""

import asyncio
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import asg_gateway
import httpx
import pytest
from asg_gateway import ASGGatewayClient, AsyncASGGatewayClient

from tests.unit.sdk.gateway import CALL, TASK, submit
from tests.unit.sdk.servers import AsyncTaskServer, TaskServer


def in_child(run: Callable[[], int]) -> int:
    """Fork, call `run` in the child, and return its exit code."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        os._exit(run())
    finally:
        os._exit(98)  # the call has raised


def wrong_answers(client: ASGGatewayClient, name: str, calls: int) -> int:
    """Submit tasks; return how many answers belong to another one or are missing."""
    wrong = 0
    for number in range(calls):
        try:
            wrong += submit(client, idempotency_key=f"{name}/{number}").task_id != f"{name}/{number}"
        except asg_gateway.ASGGatewayError:
            wrong += 1
    return wrong


def test_client_used_before_fork_gets_its_own_answers_in_every_child() -> None:
    """Children that share the parent's connection would read one another's answers."""
    with TaskServer(0.005).running() as url, ASGGatewayClient("k", base_url=url, timeout=2, max_retries=0) as client:
        assert wrong_answers(client, "parent", 1) == 0
        with ThreadPoolExecutor(4) as threads:
            codes = threads.map(lambda name: in_child(lambda: wrong_answers(client, name, 10)), "abcd")
            assert list(codes) == [0, 0, 0, 0]
        assert wrong_answers(client, "parent again", 1) == 0


def test_fork_while_all_connections_are_busy_does_not_block_the_child() -> None:
    """The calls that hold the connections do not exist in the child."""
    with (
        TaskServer(0.5).running() as url,
        ASGGatewayClient("k", base_url=url, max_connections=2) as client,
        ThreadPoolExecutor(2) as threads,
    ):
        busy = [threads.submit(wrong_answers, client, f"parent {number}", 1) for number in range(2)]
        time.sleep(0.2)
        assert in_child(lambda: wrong_answers(client, "child", 1)) == 0
        assert [call.result() for call in busy] == [0, 0]


def test_client_with_own_transport_refuses_to_work_after_a_fork() -> None:
    """It cannot make a new transport. If the first use is in the child, nothing is shared."""

    def refused(client: ASGGatewayClient) -> int:
        try:
            submit(client)
        except RuntimeError as error:
            return 1 if "create a client in each process" in str(error) else 2
        return 0

    transport = httpx.MockTransport(lambda _: httpx.Response(202, json=TASK))
    client = ASGGatewayClient("k", transport=transport)
    assert in_child(lambda: refused(client)) == 0
    submit(client)
    assert in_child(lambda: refused(client)) == 1


async def test_asynchronous_client_used_before_fork_refuses_to_work_in_the_child() -> None:
    """Its event loop is that of the parent."""

    async def call(client: AsyncASGGatewayClient) -> int:
        async with client:
            try:
                await client.submit_task(**CALL)
            except RuntimeError as error:
                return 1 if "create a client in each process" in str(error) else 2
        return 0

    def in_new_loop(client: AsyncASGGatewayClient) -> int:
        asyncio._set_running_loop(None)
        return asyncio.run(call(client))

    with TaskServer().running() as url:
        client = AsyncASGGatewayClient("k", base_url=url)
        assert in_child(lambda: in_new_loop(client)) == 0
        await client.submit_task(**CALL)
        assert in_child(lambda: in_new_loop(client)) == 1
        await client.submit_task(**CALL)
        await client.close()


def test_asynchronous_client_can_be_used_in_one_event_loop_after_another() -> None:
    with TaskServer().running() as url:
        client = AsyncASGGatewayClient("k", base_url=url, max_retries=0)

        async def call(key: str) -> str:
            return (await client.submit_task(**CALL, idempotency_key=key)).task_id

        assert [asyncio.run(call("a")), asyncio.run(call("b"))] == ["a", "b"]
        asyncio.run(client.close())


def test_asynchronous_client_refuses_two_event_loops_at_once() -> None:
    client = AsyncASGGatewayClient("k", transport=httpx.MockTransport(lambda _: httpx.Response(202, json=TASK)))

    async def call() -> None:
        await client.submit_task(**CALL)

    with asyncio.Runner() as first, asyncio.Runner() as second:
        first.run(call())
        with pytest.raises(RuntimeError, match="create a client in each event loop"):
            second.run(call())


async def test_2000_calls_at_once_succeed_in_the_time_of_40_rounds_of_50() -> None:
    """No call waits for more than `timeout` for its answer, although most wait longer for a connection."""
    server, loop = AsyncTaskServer(0.05), asyncio.get_running_loop()
    async with (
        server.running() as url,
        AsyncASGGatewayClient("k", base_url=url, timeout=1.5, max_retries=0) as client,
    ):
        began = loop.time()
        results = await asyncio.gather(*[client.submit_task(**CALL) for _ in range(2_000)])
        seconds = loop.time() - began
    assert (len(results), server.most) == (2_000, 50)
    assert 40 * 0.05 <= seconds < 60, "the old client needed 166 s"


def test_many_threads_share_the_connections_of_one_client() -> None:
    """Each of 120 threads waits for several rounds of 0.1 s, longer than `timeout`."""
    server = TaskServer(0.1)
    with (
        server.running() as url,
        ASGGatewayClient("k", base_url=url, timeout=0.3, max_retries=0, max_connections=20) as client,
        ThreadPoolExecutor(120) as threads,
    ):
        names = [str(number) for number in range(120)]
        assert list(threads.map(lambda name: wrong_answers(client, name, 1), names)) == [0] * 120
    assert server.connections <= 20


@pytest.mark.parametrize("number", [0, -1, True, 2.5])
def test_invalid_max_connections_is_a_value_error(number: int) -> None:
    for client in (ASGGatewayClient, AsyncASGGatewayClient):
        with pytest.raises(ValueError, match="max_connections must be"):
            client("k", max_connections=number)
