"""A customer's rate limit over two shims and two API keys, and the SDK and `asg-submit` under it."""

import asyncio
import json
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest
from asg_gateway import AsyncASGGatewayClient

from tests.e2e.contract import TASK
from tests.e2e.test_bulk import task, write_tasks
from tests.e2e.test_bulk_cluster import start_submit
from tests.e2e.test_cluster import Deployment, deployment
from tests.unit.sdk.gateway import CALL

__all__ = ["deployment"]  # a fixture

KNOWN = 2.5
"""Seconds after which every shim knows a change of a customer."""


class CountingTransport(httpx.AsyncHTTPTransport):
    """Counts the answers by status."""

    def __init__(self) -> None:
        super().__init__()
        self.statuses: Counter[int] = Counter()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        answer = await super().handle_async_request(request)
        self.statuses[answer.status_code] += 1
        return answer


async def limit(deployment: Deployment, rate: str) -> None:
    """Set the rate of the customer, and wait until the shims know it."""
    changed = await asyncio.to_thread(deployment.ingest, "customer", "set", deployment.cust_id, "--rate", rate)
    assert changed["rate"] == rate
    await asyncio.sleep(KNOWN)


async def not_at_the_end_of_a_minute(needed: float = 8.0) -> None:
    """Wait for the next minute unless this one lasts for `needed` seconds."""
    left = 60 - time.time() % 60
    if left < needed:
        await asyncio.sleep(left + 0.1)


async def test_two_shims_and_two_keys_share_a_limit_exactly(deployment: Deployment) -> None:
    """Of 160 concurrent requests, 40 are accepted and charged. Once there is no limit, the refused keys are new."""
    second_key = (await asyncio.to_thread(deployment.ingest, "key", "create", deployment.cust_id))["api_key"]
    await limit(deployment, "40/m")
    await not_at_the_end_of_a_minute()
    async with httpx.AsyncClient(timeout=20) as client:

        async def post(number: int) -> httpx.Response:
            key = (deployment.api_key, second_key)[number // 2 % 2]
            return await client.post(
                f"{deployment.urls[number % 2]}/v1/tasks",
                json=TASK | {"idempotency_key": f"k{number}"},
                headers={"Authorization": f"Bearer {key}"},
            )

        answers = await asyncio.gather(*[post(number) for number in range(160)])
        assert Counter(answer.status_code for answer in answers) == {202: 40, 429: 120}
        for answer in answers:
            assert answer.headers["RateLimit-Policy"] == '"default";q=40;w=60'
            assert ("Retry-After" in answer.headers) == (answer.status_code == 429)
        shown = await asyncio.to_thread(deployment.ingest, "customer", "show", deployment.cust_id)
        assert shown["used_this_month"] == 40
        await limit(deployment, "none")
        repeats = [await post(number) for number in range(160)]
    expected = [200 if answer.status_code == 202 else 202 for answer in answers]
    assert [repeat.status_code for repeat in repeats] == expected


async def test_sdk_submits_everything_at_the_rate_of_the_limit(deployment: Deployment) -> None:
    """Only calls that were in flight when the first one was refused are refused, too."""
    await limit(deployment, "20/s")
    transport = CountingTransport()
    start = time.monotonic()
    async with AsyncASGGatewayClient(
        deployment.api_key, base_url=deployment.urls[0], transport=transport, max_connections=30
    ) as client:
        results = await asyncio.gather(*[client.submit_task(**CALL) for _ in range(100)])
    assert len({result.task_id for result in results}) == 100
    assert transport.statuses[202] == 100
    assert transport.statuses[429] <= 30
    assert 3 <= time.monotonic() - start <= 15


async def test_asg_submit_finishes_a_file_under_a_limit_and_says_why_it_waits(
    deployment: Deployment, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """40 chunks at 10 a second; the same file again is replayed under the same limit."""
    await limit(deployment, "10/s")
    file = write_tasks(tmp_path / "tasks.jsonl", [task(number) for number in range(800)])
    for name in ("accepted", "replayed"):
        start = time.monotonic()
        options = ("--chunk", "20", "--concurrency", "16", "--no-journal")
        submit = await start_submit(deployment, deployment.urls[name == "replayed"], file, *options)
        stdout, _ = await asyncio.wait_for(submit.communicate(), 60)
        assert (submit.returncode, json.loads(stdout)[name]) == (0, 800)
        assert time.monotonic() - start >= 2.5
        assert capfd.readouterr().err.count("the gateway limits the rate of submissions") == 1
