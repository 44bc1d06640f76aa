"""How one queue's deliveries are attempted and retried: a scripted processor, in virtual time."""

import asyncio

import pytest

from ingest.domain.errors import ParserFailed
from ingest.domain.topology import INGEST_TASKS
from tests.support.loop_harness import LoopHarness, between, now
from tests.support.virtual_time_loop import in_virtual_time


@in_virtual_time
async def test_pauses_of_a_contended_delivery() -> None:
    harness = LoopHarness()
    harness.processor.trouble = {"contended": "contended"}
    harness.consumer.deliver("contended")
    await harness.run_for(100)
    times = harness.processor.times_of("contended")
    soon = [time for time in times if time < 0.5]
    assert 3 <= len(soon) <= 6
    assert between([time for time in times if time > 12], 2.5, 7.5)
    assert harness.breaker.state.opened_at is None


@in_virtual_time
async def test_delivery_with_a_large_body_is_a_micro_batch_by_itself_and_delays_no_other_one() -> None:
    """It may wait for the process that parses. It is retried as others are."""
    harness = LoopHarness()
    harness.processor.seconds = 1
    harness.processor.trouble = {"large": "contended"}
    harness.consumer.deliver("a", "b")
    harness.consumer.deliver("large", body=b"[" * 1_000_000)
    harness.consumer.deliver("c")
    await harness.run_for(1.5)
    assert harness.processor.attempts[:3] == [(0, ["a", "b"]), (0, ["large"]), (1, ["c"])]
    assert harness.processor.times_of("large")[1:] != []


@in_virtual_time
async def test_defect_costs_only_the_delivery_that_triggers_it() -> None:
    """The others are attempted alone, and their trouble is treated as usual. The defective one is requeued later."""
    harness = LoopHarness()
    harness.processor.trouble = {
        "defect": ZeroDivisionError(),
        "contended": "contended",
        "refused": "refused",
        "rejected": "rejected",
        "untrusted": "untrusted",
        "undecided": "undecided",
        "unavailable": "unavailable",
    }
    others = list(harness.processor.trouble)[1:]
    harness.consumer.deliver("good", "defect", *others)

    async def use() -> None:
        await asyncio.sleep(0.25)
        alone = [names for _, names in harness.processor.attempts[1:9]]
        assert alone == [["good"], ["defect"], *[[name] for name in others]]
        assert harness.consumer.requeued == [(0.2, ["defect"])]
        harness.processor.trouble = {}
        harness.processor.attempts.clear()
        await asyncio.sleep(5)
        again = sorted(name or "" for _, names in harness.processor.attempts for name in names)
        assert again == sorted(others)

    await harness.run(use())


@in_virtual_time
@pytest.mark.parametrize("error", [ZeroDivisionError(), ParserFailed("took too long")])
async def test_single_delivery_that_triggers_a_defect_is_requeued_once(error: Exception) -> None:
    harness = LoopHarness()
    harness.processor.trouble = {"defect": error}
    harness.consumer.deliver("defect")
    await harness.run_for(10)
    assert harness.processor.attempts == [(0, ["defect"])]
    assert harness.consumer.requeued == [(0.2, ["defect"])]


@in_virtual_time
async def test_unavailable_dependency_opens_the_circuit_only_if_nothing_was_finished() -> None:
    """Then the next attempt is a trial, after the breaker's pause and not after one of the loop's own."""
    harness = LoopHarness()
    harness.processor.trouble = {"unavailable": "unavailable"}
    harness.consumer.deliver("unavailable", "good")

    async def use() -> None:
        await asyncio.sleep(0.01)
        assert not harness.breaker.state.is_open
        await asyncio.sleep(0.2)
        assert harness.breaker.state.is_open
        opened_at = harness.breaker.state.opened_at or 0.0
        await asyncio.sleep(10)
        assert harness.processor.times_of("unavailable")[-1] == round(opened_at + 10, 3)
        harness.processor.trouble = {}
        await asyncio.sleep(10)
        assert not harness.breaker.state.is_open

    await harness.run(use())
    assert harness.consumer.apart == []


@in_virtual_time
async def test_first_pause_after_an_outage_is_twice_as_long_as_after_contention() -> None:
    """Each is random, between a half and one and a half of 100 ms or 50 ms."""
    for trouble, pause in (("contended", 0.05), ("unavailable", 0.1)):
        names = [f"{trouble} {number}" for number in range(30)]
        harness = LoopHarness(max_batch=2)
        harness.processor.trouble = dict.fromkeys(names, trouble)
        for name in names:
            harness.consumer.deliver(name, f"good {name}")
        began = now()

        async def use(harness: LoopHarness = harness) -> None:
            await asyncio.sleep(0.01)
            harness.processor.trouble = {}
            await asyncio.sleep(0.5)

        await harness.run(use())
        pauses = sorted(harness.processor.times_of(name)[1] - began for name in names)
        assert pause * 0.5 <= pauses[0] < pause * 0.7
        assert pause * 1.3 < pauses[-1] <= pause * 1.5


@in_virtual_time
async def test_contended_delivery_does_not_open_the_circuit() -> None:
    """Nor one that is refused: that is trouble of a single submission."""
    harness = LoopHarness()
    harness.processor.trouble = {"contended": "contended", "refused": "refused"}
    harness.consumer.deliver("contended")
    harness.consumer.deliver("refused")
    await harness.run_for(0.3)
    assert not harness.breaker.state.is_open


@in_virtual_time
async def test_lost_delivery_is_not_attempted() -> None:
    """The broker delivers it again. If all are lost, there is nothing to attempt, which is not a success."""
    harness = LoopHarness()
    harness.processor.trouble = {"unavailable": "unavailable"}

    async def use() -> None:
        harness.consumer.lost = [harness.consumer.deliver("lost", "good")[0]]
        await asyncio.sleep(1)
        assert harness.processor.attempts == [(0, ["good"])]
        waiting = harness.consumer.deliver("unavailable")
        await asyncio.sleep(1)
        harness.consumer.lost += waiting
        await asyncio.sleep(100)
        assert harness.processor.times_of("unavailable") == [1]
        assert harness.breaker.state.is_open

    await harness.run(use())


@in_virtual_time
async def test_lost_deliveries_do_not_accumulate_while_they_wait() -> None:
    """The connection is lost again and again during an outage, and each time everything is delivered again."""
    harness = LoopHarness(max_batch=1)
    harness.processor.seconds = 100

    async def use() -> None:
        harness.consumer.deliver("in progress", "in progress too", "and this")
        await asyncio.sleep(1)
        for round_ in range(10):
            harness.consumer.lost += harness.consumer.deliver(*[f"{round_}.{number}" for number in range(3)])
            await asyncio.sleep(1)
        assert harness.loop._small.waiting.count(INGEST_TASKS) <= 6
        harness.consumer.deliver("good")
        await asyncio.sleep(1)
        assert [waiting.message_id for waiting in harness.loop._small.waiting.take(10)] == ["good"]

    await harness.run(use())


@in_virtual_time
async def test_at_most_three_micro_batches_are_in_progress() -> None:
    """A single delivery starts at once only if nothing is in progress. Retries do not count."""
    harness = LoopHarness(max_batch=2)
    harness.processor.seconds = 10
    harness.processor.trouble = {"0": "contended"}

    async def use() -> None:
        harness.consumer.deliver("0", "1", "2")
        await asyncio.sleep(1)
        assert harness.processor.attempts == [(0, ["0", "1"])]
        harness.consumer.deliver("3", "4", "5", "6", "7")
        await asyncio.sleep(1)
        assert harness.processor.attempts[1:] == [(1, ["2", "3"]), (1, ["4", "5"])]
        await asyncio.sleep(8.01)
        assert harness.processor.attempts[3:4] == [(10, ["6", "7"])]

    await harness.run(use())
    assert harness.loop._small.in_progress == 0


@in_virtual_time
async def test_stop_ends_every_wait_for_another_attempt() -> None:
    harness = LoopHarness()
    harness.processor.trouble = {"refused": "refused", "unavailable": "unavailable"}
    harness.consumer.deliver("refused", "unavailable")
    await harness.run_for(30)
    assert now() == 30
