"""Events that may crash their consumers: counted as each version of RabbitMQ does, handled alone, parked in the end."""

import asyncio

import pytest
from asg_gateway.amqp import Event, PoisonError
from asg_gateway.amqp._consuming.deliveries import earlier_deliveries, remaining_pause
from asg_gateway.amqp.testing import task_accepted

from tests.unit.sdk.amqp.deliveries import Bench, delivery, settle

EVENTS = [task_accepted(id=f"event-{number}") for number in range(9)]
IDS = [event.id for event in EVENTS]


class Steps:
    """A handler whose calls end when the test says so."""

    def __init__(self) -> None:
        self.running: dict[str, asyncio.Future[None]] = {}

    async def __call__(self, event: Event) -> None:
        self.running[event.id] = asyncio.get_running_loop().create_future()
        try:
            await self.running[event.id]
        finally:
            del self.running[event.id]

    async def end(self, *event_ids: str) -> None:
        for event_id in event_ids:
            self.running[event_id].set_result(None)
        await settle()

    async def fail(self, event_id: str) -> None:
        self.running[event_id].set_exception(ValueError("not now"))
        await settle()


@pytest.mark.parametrize(
    ("version", "headers", "count"),
    [
        ("3.10.8", {}, 0),
        ("3.10.8", {"x-delivery-count": 3}, 3),
        ("4.2.1", {"x-delivery-count": 1, "x-acquired-count": 9}, 1),
        ("4.3.0", {"x-delivery-count": 0, "x-acquired-count": 2}, 2),
        ("5.0", {"x-acquired-count": 2}, 2),
        ("", {"x-acquired-count": 2}, 0),
        ("3.10.8", {"x-delivery-count": "many"}, 0),
    ],
)
def test_only_the_brokers_own_count_is_believed(version: str, headers: dict[str, object], count: int) -> None:
    assert earlier_deliveries(headers, version) == count


async def test_suspect_is_handled_alone_after_all_that_arrived_with_it() -> None:
    bench = Bench(steps := Steps(), concurrency=3)
    counts = [0, 0, 0, 0, 2, 0, 4, 1]
    await bench.accept(*[delivery(event, count) for event, count in zip(EVENTS, counts, strict=False)])
    assert set(steps.running) == {IDS[0], IDS[1], IDS[2]}
    await steps.end(IDS[0], IDS[1])
    await bench.accept(delivery(EVENTS[8]))  # arrives during the round, and waits for its end
    assert set(steps.running) == {IDS[2], IDS[3], IDS[5]}
    await steps.end(IDS[2], IDS[3], IDS[5])
    assert set(steps.running) == {IDS[7]}
    await steps.end(IDS[7])
    for suspect in (IDS[4], IDS[6]):
        assert set(steps.running) == {suspect}
        await steps.end(suspect)
    assert set(steps.running) == {IDS[8]}


async def test_suspects_with_fewer_deliveries_have_their_turn_first() -> None:
    """What was held beside the poison has at most its count."""
    bench = Bench(steps := Steps(), concurrency=1)
    await bench.accept(delivery(EVENTS[0]))
    await bench.accept(delivery(EVENTS[1], 4), delivery(EVENTS[2], 2), delivery(EVENTS[3], 3))
    await steps.end(IDS[0])
    order = []
    while steps.running:
        (running,) = steps.running
        order.append(running)
        await steps.end(running)
    assert order == [IDS[2], IDS[3], IDS[1]]


async def test_suspect_that_survives_an_attempt_is_no_suspect_any_more() -> None:
    bench = Bench(steps := Steps())
    await bench.accept(delivery(EVENTS[0], 2))
    await steps.fail(IDS[0])
    await bench.accept(delivery(EVENTS[1]))
    bench.pauses.end()
    await settle()
    assert set(steps.running) == {IDS[0], IDS[1]}


async def test_event_is_parked_without_an_attempt_after_max_attempts_crashes_alone() -> None:
    bench = Bench(steps := Steps(), max_attempts=3)
    await bench.accept(kept := delivery(EVENTS[0], 4))
    assert set(steps.running) == {IDS[0]}
    await steps.end(IDS[0])
    await bench.accept(parked := delivery(EVENTS[1], 5))
    ((error, attempts),) = parked.parked
    assert isinstance(error, PoisonError)
    assert (attempts, parked.acks, kept.parked, kept.acks) == (5, 1, [], 1)


async def test_event_is_never_parked_for_its_count_without_max_attempts() -> None:
    bench = Bench(steps := Steps(), max_attempts=None)
    await bench.accept(delivery(EVENTS[0], 1000))
    assert set(steps.running) == {IDS[0]}


async def test_count_that_grows_while_the_process_lives_parks_nothing() -> None:
    """The connection was lost many times during the pauses; the handler has not crashed."""
    bench = Bench(steps := Steps(), max_attempts=3)
    await bench.accept(first := delivery(EVENTS[0]))
    await steps.fail(IDS[0])
    first.alive = False
    await bench.accept(again := delivery(EVENTS[0], 50))
    bench.pauses.end()
    await settle()
    assert (set(steps.running), again.parked) == ({IDS[0]}, [])
    await steps.fail(IDS[0])
    again.alive = False
    bench.pauses.end()  # no copy of it is held any more
    await settle()
    await bench.accept(last := delivery(EVENTS[0], 99))
    assert (set(steps.running), last.parked) == ({IDS[0]}, [])


@pytest.mark.parametrize(
    ("parked_at", "seconds"),
    [
        ("2026-04-09T12:00:00Z", 50.0),
        ("2026-04-09T11:00:00Z", 0.0),
        ("2026-04-09T13:00:00Z", 60.0),  # another clock
        ("yesterday", 0.0),
        (None, 0.0),
        (5, 0.0),
    ],
)
def test_pause_after_parking_counts_from_the_header(parked_at: object, seconds: float) -> None:
    assert remaining_pause(parked_at, 60.0, 1_775_736_010.0) == seconds
