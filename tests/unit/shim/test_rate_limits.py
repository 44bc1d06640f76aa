"""Rate limits: the permits of one process and of several that share a store."""

import asyncio
import tracemalloc

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.domain.rates import RateLimit
from ingest.shim import rate_limits
from ingest.shim.problems import Problem
from ingest.shim.rate_limits import MAX_WINDOWS, PATIENCE, UNLIMITED, RateLimiter
from tests.support.fakes import Clock, CountedPermits
from tests.support.virtual_time_loop import in_virtual_time

TEN_A_SECOND = RateLimit(10, 1)
HUNDRED_A_MINUTE = RateLimit(100, 60)


async def is_granted(limiter: RateLimiter, rate: RateLimit = TEN_A_SECOND, cust_id: str = "c") -> bool:
    try:
        await limiter.take(cust_id, rate)
    except Problem:
        return False
    return True


async def granted_of(count: int, limiter: RateLimiter, rate: RateLimit = TEN_A_SECOND, cust_id: str = "c") -> int:
    """Take `count` permits one after another; return how many were granted."""
    return sum([await is_granted(limiter, rate, cust_id) for _ in range(count)])


@pytest.fixture
def permits() -> CountedPermits:
    return CountedPermits()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limiter(permits: CountedPermits, clock: Clock) -> RateLimiter:
    return RateLimiter(permits, wall_clock=clock, clock=clock)


async def test_each_window_grants_its_limit(limiter: RateLimiter, clock: Clock) -> None:
    """Windows are the seconds of Unix time."""
    clock.now += 0.9
    assert await granted_of(15, limiter) == 10
    clock.now += 0.1
    assert await granted_of(15, limiter) == 10
    clock.now += 0.999
    assert await granted_of(15, limiter) == 0


async def test_refusal_says_what_the_limit_is_and_when_to_try_again(limiter: RateLimiter, clock: Clock) -> None:
    clock.now = 60 * 1000 + 17.5
    for remaining in range(99, -1, -1):
        fields = await limiter.take("c", HUNDRED_A_MINUTE)
        assert fields == (
            (b"ratelimit-policy", b'"default";q=100;w=60'),
            (b"ratelimit", b'"default";r=%d;t=43' % remaining),
        )
    with pytest.raises(Problem) as refusal:
        await limiter.take("c", HUNDRED_A_MINUTE)
    assert refusal.value.status == 429
    assert refusal.value.headers == (
        (b"retry-after", b"43"),
        (b"ratelimit-policy", b'"default";q=100;w=60'),
        (b"ratelimit", b'"default";r=0;t=43'),
    )
    assert msgspec.json.decode(refusal.value.body()) == {
        "error": "rate limit exceeded: at most 100 submissions per minute (a batch is one), retry in 43 s"
    }


async def test_process_claims_a_twentieth_of_the_limit_at_once_and_nothing_once_it_is_exhausted(
    limiter: RateLimiter, permits: CountedPermits
) -> None:
    assert await granted_of(500, limiter, HUNDRED_A_MINUTE) == 100
    assert [claim.count for (claim,) in permits.calls] == [5] * 20


async def test_submissions_that_wait_together_share_the_claims(limiter: RateLimiter, permits: CountedPermits) -> None:
    """Also those of several customers. The first claim is for those that have come when it begins."""
    customers = [f"c{number % 4}" for number in range(400)]
    answers = await asyncio.gather(*[is_granted(limiter, HUNDRED_A_MINUTE, cust_id) for cust_id in customers])
    assert answers == [True] * 400
    assert [[claim.count for claim in claims] for claims in permits.calls] == [[100] * 4]
    assert not await is_granted(limiter, HUNDRED_A_MINUTE, "c0")


async def test_submissions_that_come_during_a_claim_wait_for_it_and_claim_what_is_missing(
    limiter: RateLimiter, permits: CountedPermits
) -> None:
    """None of them overtakes one that has come before."""
    first = asyncio.create_task(is_granted(limiter, HUNDRED_A_MINUTE))
    while not permits.calls:
        await asyncio.sleep(0)
    others = [asyncio.create_task(is_granted(limiter, HUNDRED_A_MINUTE)) for _ in range(24)]
    assert await asyncio.gather(first, *others) == [True] * 25
    assert [claim.count for (claim,) in permits.calls] == [5, 20]


@given(
    st.integers(1, 60),
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 40)), max_size=20),
)
def test_processes_that_share_a_store_grant_the_limit_and_no_more(limit: int, bursts: list[tuple[int, int]]) -> None:
    """Bursts of submissions at three processes. Each can keep less than a chunk that another one would need."""

    async def run() -> None:
        permits, clock, rate = CountedPermits(), Clock(), RateLimit(limit, 60)
        processes = [RateLimiter(permits, wall_clock=clock, clock=clock) for _ in range(3)]
        total = wanted = 0
        for process, count in bursts:
            wanted += count
            total += sum(await asyncio.gather(*[is_granted(processes[process], rate) for _ in range(count)]))
        assert total <= limit
        assert total >= min(wanted, limit - 2 * (rate.chunk - 1))

    asyncio.run(run())


async def test_clock_that_jumps_back_does_not_renew_a_window(limiter: RateLimiter, clock: Clock) -> None:
    """A window that has not been used before has its limit, wherever the clock jumps."""
    assert await granted_of(15, limiter) == 10
    clock.now += 1
    assert await granted_of(15, limiter) == 10
    clock.now -= 1
    assert await granted_of(15, limiter) == 0
    for jump in (-3600, 7200):
        clock.now += jump
        assert await granted_of(15, limiter) == 10


async def test_changed_limit_counts_at_once(limiter: RateLimiter) -> None:
    """What was granted in the window before counts, too."""
    assert await granted_of(15, limiter, RateLimit(10, 60)) == 10
    assert await granted_of(15, limiter, RateLimit(12, 60)) == 2
    assert await granted_of(15, limiter, RateLimit(5, 60)) == 0


async def test_equal_limit_of_another_record_keeps_the_permits(limiter: RateLimiter, permits: CountedPermits) -> None:
    """The record is read again every two seconds."""
    for _ in range(100):
        assert await is_granted(limiter, RateLimit(100, 60))
    assert len(permits.calls) == 20


async def test_windows_that_have_ended_are_forgotten(limiter: RateLimiter, clock: Clock) -> None:
    """However many customers there are: each new window removes up to two that have ended."""
    for second in range(100):
        clock.now += 1
        await asyncio.gather(*[is_granted(limiter, cust_id=f"{second}-{number}") for number in range(50)])
        assert limiter.windows <= 100


async def test_memory_is_bounded_if_no_window_has_ended(
    monkeypatch: pytest.MonkeyPatch, limiter: RateLimiter, permits: CountedPermits
) -> None:
    """The oldest windows are forgotten. All of them together take less than 32 MiB."""
    most = 1000
    monkeypatch.setattr(rate_limits, "MAX_WINDOWS", most)
    tracemalloc.start()
    try:
        for number in range(3 * most):
            await is_granted(limiter, RateLimit(100, 60), f"a-customer-{number}")
        permits.calls.clear()
        permits.claimed.clear()
        limits = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, rate_limits.__file__)])
    finally:
        tracemalloc.stop()
    assert limiter.windows == most
    assert sum(trace.size for trace in limits.traces) / most * MAX_WINDOWS < 32 * 2**20


@pytest.mark.parametrize("trouble", ["fails", "c"], ids=["outage", "undecided record"])
async def test_submission_is_not_limited_while_the_store_cannot_count(
    limiter: RateLimiter, permits: CountedPermits, clock: Clock, trouble: str
) -> None:
    """The store is asked again after a moment, once for all that wait. Then the limit holds again."""
    permits.trouble = trouble
    assert await granted_of(30, limiter, HUNDRED_A_MINUTE) == 30
    assert len(permits.calls) == 1
    clock.now += UNLIMITED
    assert await granted_of(30, limiter, HUNDRED_A_MINUTE) == 30
    assert len(permits.calls) == 2
    permits.trouble = ""
    clock.now += UNLIMITED
    lost = sum(permits.claimed.values())
    assert await granted_of(200, limiter, HUNDRED_A_MINUTE) == 100 - lost


@in_virtual_time
async def test_submission_waits_a_second_for_a_store_that_hangs() -> None:
    """Those that follow do not wait, and the claim that hangs does not prevent later ones."""
    permits = CountedPermits()
    permits.trouble = "hangs"
    loop = asyncio.get_running_loop()
    limiter = RateLimiter(permits, wall_clock=loop.time, clock=loop.time)
    start = loop.time()
    assert await is_granted(limiter, HUNDRED_A_MINUTE)
    assert loop.time() - start == pytest.approx(PATIENCE)
    assert await granted_of(30, limiter, HUNDRED_A_MINUTE) == 30
    assert loop.time() - start == pytest.approx(PATIENCE)
    permits.trouble = ""
    await asyncio.sleep(3)
    assert await granted_of(200, limiter, HUNDRED_A_MINUTE) == 100


async def test_cancelled_submission_leaves_its_permit_to_others(limiter: RateLimiter, permits: CountedPermits) -> None:
    tasks = [asyncio.create_task(is_granted(limiter)) for _ in range(10)]
    while not permits.calls:
        await asyncio.sleep(0)
    for task in tasks[:9]:
        task.cancel()
    assert await tasks[9]
    assert await granted_of(15, limiter) == 9
