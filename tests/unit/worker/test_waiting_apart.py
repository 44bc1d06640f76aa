"""Deliveries with trouble of their own wait apart and are put back: a scripted processor, in virtual time."""

import asyncio

from ingest.domain.topology import INGEST_TASKS
from tests.support.loop_harness import LoopHarness, between
from tests.support.virtual_time_loop import in_virtual_time


@in_virtual_time
async def test_contended_delivery_is_attempted_again_soon_and_after_half_a_second_apart() -> None:
    """Then it takes no part of the prefetch, and is attempted every few seconds until it is finished."""
    harness = LoopHarness()
    harness.processor.trouble = {"contended": "contended"}
    harness.consumer.deliver("contended", "other")

    async def use() -> None:
        await asyncio.sleep(100)
        assert harness.processor.times_of("other") == [0]
        harness.processor.trouble = {}
        await asyncio.sleep(8)
        harness.processor.attempts.clear()
        await asyncio.sleep(100)

    await harness.run(use())
    assert harness.consumer.apart == [(["contended"], 1)]
    assert harness.processor.attempts == []


@in_virtual_time
async def test_refused_and_rejected_deliveries_wait_apart_at_once() -> None:
    """Both wait together. Each pause is twice as long as the one before, up to half a minute."""
    harness = LoopHarness()
    harness.processor.trouble = {"refused": "refused", "rejected": "rejected"}
    harness.consumer.deliver("refused", "other", "rejected")
    await harness.run_for(600)
    times = harness.processor.times_of("refused")
    assert times == harness.processor.times_of("rejected")
    assert times[0] == 0
    assert 0.25 <= times[1] <= 0.75
    assert between([time for time in times if time > 60], 15, 45)
    assert harness.processor.times_of("other") == [0]
    assert harness.consumer.apart == [(["refused", "rejected"], 2)]


@in_virtual_time
async def test_untrusted_delivery_waits_apart_at_once_and_is_attempted_every_few_seconds() -> None:
    harness = LoopHarness()
    harness.processor.trouble = {"untrusted": "untrusted"}
    harness.consumer.deliver("untrusted", "other")
    await harness.run_for(100)
    assert harness.consumer.apart == [(["untrusted"], 1)]
    assert between([time for time in harness.processor.times_of("untrusted") if time > 12], 2.5, 7.5)
    assert harness.processor.times_of("other") == [0]


@in_virtual_time
async def test_undecided_delivery_waits_apart_after_half_a_second_and_does_not_open_the_circuit() -> None:
    """The store has trouble with one of its records only. The first pauses are those after an outage."""
    harness = LoopHarness()
    harness.processor.trouble = {"undecided": "undecided"}
    harness.consumer.deliver("undecided")
    await harness.run_for(0.4)
    assert harness.consumer.apart == []
    harness = LoopHarness()
    harness.processor.trouble = {"undecided": "undecided"}
    harness.consumer.deliver("undecided")
    await harness.run_for(100)
    assert harness.consumer.apart == [(["undecided"], 1)]
    assert not harness.breaker.state.is_open
    times = [time - 0.4 for time in harness.processor.times_of("undecided")]
    assert 0.05 <= times[1] <= 0.15
    assert between([time for time in times if time > 12], 2.5, 7.5)


@in_virtual_time
async def test_extra_prefetch_covers_everything_that_waits_apart_now() -> None:
    """What is finished counts no longer."""
    harness = LoopHarness()
    harness.processor.trouble = dict.fromkeys("abcd", "refused")
    harness.consumer.deliver("a", "b")

    async def use() -> None:
        await asyncio.sleep(1)
        harness.consumer.deliver("c")
        await asyncio.sleep(1)
        del harness.processor.trouble["a"], harness.processor.trouble["c"]
        await asyncio.sleep(100)
        harness.consumer.deliver("d")
        await asyncio.sleep(1)

    await harness.run(use())
    assert harness.consumer.apart == [(["a", "b"], 2), (["c"], 3), (["d"], 2)]


@in_virtual_time
async def test_deliveries_that_waited_until_the_worker_stopped_count_no_longer() -> None:
    harness = LoopHarness()
    harness.processor.trouble = {"a": "refused", "b": "contended"}
    harness.consumer.deliver("a", "b")
    await harness.run_for(10)
    assert harness.loop._apart[INGEST_TASKS].count == 0


@in_virtual_time
async def test_deliveries_wait_apart_even_if_the_broker_allows_no_extra_prefetch() -> None:
    harness = LoopHarness()
    harness.processor.trouble = {"refused": "refused"}
    harness.consumer.is_connected = False
    harness.consumer.deliver("refused")
    await harness.run_for(100)
    assert len(harness.processor.times_of("refused")) > 3


@in_virtual_time
async def test_extra_prefetch_has_a_limit() -> None:
    names = [f"m{number}" for number in range(10_001)]
    harness = LoopHarness(max_batch=20_000)
    harness.processor.trouble = dict.fromkeys(names, "refused")
    harness.consumer.deliver(*names)
    await harness.run_for(0.2)
    assert [extra for _, extra in harness.consumer.apart] == [10_000]


@in_virtual_time
async def test_delivery_that_was_held_too_long_is_put_back() -> None:
    """One whose events are refused moves to the end of the queue; others are requeued. What is lost is neither.

    The broker would close the channel after half an hour. A delivery that could not be moved is held again.
    """
    harness = LoopHarness()
    names = ("refused", "unmoved", "lost", "rejected")
    harness.processor.trouble = dict(zip(names, ["refused"] * 3 + ["rejected"], strict=True))
    harness.processor.unmoved = {"unmoved"}
    harness.consumer.lost = [harness.consumer.deliver(*names)[2]]

    async def use() -> None:
        await asyncio.sleep(1199)
        assert (harness.processor.moves, harness.consumer.requeued) == ([], [])
        await asyncio.sleep(46)
        harness.processor.attempts.clear()
        await asyncio.sleep(50)

    await harness.run(use())
    (moved_at, moved), (_, moved_again) = harness.processor.moves[:2]
    assert (moved, moved_again) == (["refused", "unmoved"], ["unmoved"])
    assert moved_at >= 1200
    assert harness.consumer.requeued[0] == (moved_at, ["rejected"])
    assert {name for _, names in harness.processor.attempts for name in names} == {"unmoved"}


@in_virtual_time
async def test_delivery_that_is_finished_at_last_is_not_put_back() -> None:
    harness = LoopHarness()
    harness.processor.trouble = {"a": "refused"}
    harness.consumer.deliver("a")

    async def use() -> None:
        await asyncio.sleep(1199)
        harness.processor.trouble = {}
        await asyncio.sleep(100)

    await harness.run(use())
    assert harness.processor.times_of("a")[-1] >= 1200
    assert (harness.processor.moves, harness.consumer.requeued) == ([], [])


@in_virtual_time
async def test_contended_delivery_that_was_held_too_long_is_requeued() -> None:
    """It must not be published in the service's own name."""
    harness = LoopHarness()
    harness.processor.trouble = {"contended": "contended"}
    harness.consumer.deliver("contended")
    await harness.run_for(1300)
    ((time, requeued),) = harness.consumer.requeued
    assert (requeued, harness.processor.moves) == (["contended"], [(time, [])])
    assert 1200 <= time <= 1210
    assert harness.processor.times_of("contended")[-1] == round(time, 3)


@in_virtual_time
async def test_bodies_that_wait_apart_have_a_limit_and_the_excess_makes_room() -> None:
    """After another attempt it moves to the end of the queue. A rejected one is requeued, as long as it is refused."""
    harness = LoopHarness()
    harness.processor.trouble = {"a": "refused", "b": "refused", "c": "contended", "d": "undecided", "e": "rejected"}
    harness.consumer.deliver("a", "b", "c", "d", "e", body=b"x" * 5_000_000)
    await harness.run_for(5)
    assert harness.consumer.apart == [(["a"], 1)]
    moved = {name for _, names in harness.processor.moves for name in names}
    assert moved == {"b", "c", "d"}
    assert [names for _, names in harness.consumer.requeued] == [["e"]]
    assert len(harness.processor.times_of("a")) > 2


@in_virtual_time
async def test_excess_is_held_in_an_outage_and_while_it_is_untrusted_or_cannot_be_moved() -> None:
    """A return would count as a failed delivery."""
    harness = LoopHarness()
    harness.processor.trouble = {"a": "refused", "b": "untrusted", "c": "refused"}
    harness.processor.unmoved = {"c"}
    harness.consumer.deliver("a", "b", "c", body=b"x" * 5_000_000)
    await harness.run_for(100)
    assert harness.consumer.apart == [(["a"], 1)]
    assert harness.consumer.requeued == []
    assert len(harness.processor.times_of("b")) > 5
    assert len(harness.processor.times_of("c")) > 2


@in_virtual_time
async def test_room_apart_is_free_again_after_the_end() -> None:
    harness = LoopHarness()
    harness.processor.trouble = {"a": "refused"}
    harness.consumer.deliver("a", body=b"x" * 5_000_000)

    async def use() -> None:
        await asyncio.sleep(2)
        harness.processor.trouble = {"b": "refused"}
        await asyncio.sleep(10)
        harness.consumer.deliver("b", body=b"x" * 5_000_000)
        await asyncio.sleep(2)

    await harness.run(use())
    assert harness.consumer.apart == [(["a"], 1), (["b"], 1)]
    assert harness.processor.moves == []
