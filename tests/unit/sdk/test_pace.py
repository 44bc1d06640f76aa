"""How a client waits once the gateway limits its rate."""

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator, Callable
from itertools import pairwise

import asg_gateway
import httpx
import pytest
from asg_gateway import AsyncASGGatewayClient
from asg_gateway._bulk.engine import run
from asg_gateway._bulk.http import HttpSender
from asg_gateway._bulk.items import Chunk, chunks
from asg_gateway._bulk.sources import Row
from asg_gateway._pace import Pace
from asg_gateway._retry import Attempts, Limits
from hypothesis import example, given
from hypothesis import strategies as st

from ingest.domain.rates import RateLimit
from ingest.shim.problems import Problem
from ingest.shim.rate_limits import RateLimiter
from tests.support.fakes import Clock, CountedPermits
from tests.support.virtual_time_loop import in_virtual_time
from tests.unit.sdk.bulk.gateway import Gateway as BatchGateway
from tests.unit.sdk.bulk.gateway import task
from tests.unit.sdk.gateway import CALL, TASK, Gateway, submit

FIFTY_A_SECOND = '"default";q=50;w=1'
REFUSED = {"Retry-After": "7", "RateLimit-Policy": FIFTY_A_SECOND, "RateLimit": '"default";r=0;t=7'}
OWN_TURN = "not sent: the gateway limits the rate"


def refused(**changes: str) -> httpx.Response:
    return httpx.Response(429, json={"error": "rate limit exceeded"}, headers=REFUSED | changes)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pace(clock: Clock) -> Pace:
    return Pace(clock)


def test_nothing_waits_before_the_first_refusal(pace: Pace) -> None:
    pace.accepted(FIFTY_A_SECOND)
    assert [pace.reserve() for _ in range(1000)] == [0.0] * 1000


def test_all_attempts_wait_for_retry_after_and_then_keep_the_stated_rate(pace: Pace, clock: Clock) -> None:
    """With a margin of 5 %, because the windows of the gateway are fixed."""
    pace.refused(7, FIFTY_A_SECOND)
    starts = [pace.reserve() for _ in range(100)]
    assert 7 <= starts[0] <= 8.75
    assert [later - start for start, later in pairwise(starts)] == pytest.approx([0.021] * 99, abs=1e-6)
    clock.now += starts[-1]
    assert pace.reserve() == pytest.approx(0.021, abs=1e-6)


def test_pace_ends_after_a_window_without_attempts(pace: Pace, clock: Clock) -> None:
    pace.refused(1, '"default";q=1;w=60')
    clock.now += pace.reserve()
    clock.now += 62
    assert pace.reserve() == pytest.approx(1, abs=0.01)  # an attempt may start every 63 s
    clock.now += 1 + 63 + 60.1
    assert [pace.reserve() for _ in range(10)] == [0.0] * 10


@pytest.mark.parametrize(("policy", "interval"), [("", 0.0), ('"default";q=100;w=1', 0.0105)])
def test_pace_follows_a_limit_that_is_changed_or_removed(
    pace: Pace, clock: Clock, policy: str, interval: float
) -> None:
    pace.refused(1, FIFTY_A_SECOND)
    clock.now += pace.reserve()
    pace.accepted(policy)
    starts = [pace.reserve() for _ in range(3)]
    assert starts[2] - starts[1] == pytest.approx(interval, abs=1e-6)


@given(st.text() | st.from_regex(r'\A"default";q=[0-9]*;w=[0-9]*\Z'), st.floats(0, allow_nan=False))
@example('"default";q=0;w=1', 0.0)
@example('"default";q=1;w=99999', math.inf)
def test_any_policy_and_pause_hold_up_later_calls_for_a_bounded_time(policy: str, retry_after: float) -> None:
    """For 75 s. A proxy can ask for more, and the gateway must be asked again some time."""
    pace = Pace(Clock())
    pace.refused(retry_after, policy)
    assert 0 <= pace.reserve() <= 75
    assert pace.reserve() <= 75 + 1.05 * 999


def test_refused_call_waits_once_and_is_retried() -> None:
    gateway = Gateway(refused(), httpx.Response(202, json=TASK))
    submit(gateway.client())
    (pause,) = gateway.pauses
    assert 7 <= pause <= 8.75


def test_other_calls_of_the_client_wait_too_but_look_ups_do_not() -> None:
    """Without this, each of them would be refused, too."""
    accepted = httpx.Response(202, json=TASK)
    gateway = Gateway(refused(), accepted, accepted, accepted, accepted)
    client = gateway.client()
    submit(client)
    client.get_task("tsk_1")
    assert len(gateway.pauses) == 1
    submit(client)
    client.submit_task(**CALL)
    assert [6 < pause < 9 for pause in gateway.pauses] == [True] * 3


def test_refused_call_obeys_a_pause_that_others_shorten() -> None:
    gateway = Gateway(refused(**{"Retry-After": "100"}), httpx.Response(202, json=TASK))
    submit(gateway.client(deadline=200))
    assert 100 <= gateway.pauses[0] <= 125


def test_error_is_raised_if_retries_or_the_time_end() -> None:
    gateway = Gateway(*[refused(**{"Retry-After": "1"})] * 3)
    client = gateway.client(max_retries=2)
    with pytest.raises(asg_gateway.RateLimitedError, match="429: rate limit exceeded") as caught:
        submit(client)
    assert len(gateway.requests) == 3
    assert caught.value.idempotency_key
    with pytest.raises(asg_gateway.RateLimitedError, match="429: rate limit exceeded"):
        submit(Gateway(refused(**{"Retry-After": "60"})).client(deadline=10))


def test_call_whose_turn_comes_after_its_deadline_is_not_sent() -> None:
    gateway = Gateway(refused(), httpx.Response(202, json=TASK))
    client = gateway.client(deadline=5)
    with pytest.raises(asg_gateway.RateLimitedError, match="429: rate limit exceeded"):
        submit(client)
    with pytest.raises(asg_gateway.RateLimitedError, match=OWN_TURN) as caught:
        submit(client, idempotency_key="k")
    assert (len(gateway.requests), caught.value.idempotency_key) == (1, "k")


def test_refusal_of_another_call_during_the_wait_postpones_the_turn(clock: Clock) -> None:
    pace = Pace(clock)
    pace.refused(1, FIFTY_A_SECOND)
    waits = Attempts(Limits(30, 5, 100), "", clock, pace).waits()
    clock.now += next(waits)
    pace.refused(2, FIFTY_A_SECOND)
    postponed = next(waits)
    assert 2 <= postponed <= 2.5
    clock.now += postponed
    assert list(waits) == []


class LimitedGateway:
    """A transport with the shim's rate limit. `attempts` counts by second and status."""

    def __init__(self, rate: RateLimit, answer: Callable[[httpx.Request], httpx.Response]) -> None:
        self.attempts: Counter[tuple[int, int]] = Counter()
        self._rate = rate
        self._answer = answer
        self._time = asyncio.get_running_loop().time
        self._limiter = RateLimiter(CountedPermits(), wall_clock=self._time, clock=self._time)

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        second = int(self._time())
        try:
            fields = await self._limiter.take("c", self._rate)
            answer = self._answer(request)
            answer.headers.update([(name.decode(), value.decode()) for name, value in fields])
        except Problem as problem:
            answer = httpx.Response(problem.status, headers=problem.headers, content=problem.body())
        self.attempts[second, answer.status_code] += 1
        await asyncio.sleep(0.005)
        return answer

    def client(self) -> AsyncASGGatewayClient:
        client = AsyncASGGatewayClient("k", transport=httpx.MockTransport(self))
        client._pace = Pace(self._time)
        return client

    @property
    def refused(self) -> int:
        return sum(count for (_, status), count in self.attempts.items() if status == 429)


@in_virtual_time
async def test_300_concurrent_calls_against_10_a_second_are_all_accepted_with_few_refusals() -> None:
    """Those in flight at first are refused, at most once each. Later ones come at 9 or 10 a second."""
    gateway = LimitedGateway(RateLimit(10, 1), lambda _: httpx.Response(202, json=TASK))
    async with gateway.client() as client:
        await asyncio.gather(*[client.submit_task(**CALL) for _ in range(300)])
    assert gateway.refused == 40  # 50 connections
    seconds = sorted({second for second, _ in gateway.attempts})
    for second in seconds[1:]:
        assert gateway.attempts[second, 202] + gateway.attempts[second, 429] <= 10
    assert len(seconds) <= 300 / 9 + 2


@in_virtual_time
async def test_bulk_submission_keeps_to_30_chunks_a_minute() -> None:
    """What `asg-submit` does: all chunks in flight wait together."""
    gateway = LimitedGateway(RateLimit(30, 60), BatchGateway())
    rows = [Row(number, task(str(number))) for number in range(1000)]

    async def source() -> AsyncIterator[Chunk]:
        for chunk in chunks(rows, "", 10):
            yield chunk

    async with gateway.client() as client:
        outcomes = [outcome async for _, outcome in run(HttpSender(client, None), source(), concurrency=16) if outcome]
    assert sum(len(items) for outcome in outcomes for _, items in outcome.accepted) == 1000
    assert gateway.refused <= 16
