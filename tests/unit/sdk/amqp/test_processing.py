"""What a consumer does with its deliveries: retries, parking, copies, lost channels, drains."""

import asyncio

import aiormq.abc
import pytest
from asg_gateway.amqp import Dedupe, DedupeUnavailableError, Event, MemoryDedupe, Park
from asg_gateway.amqp._consuming.parking import parked_copy
from asg_gateway.amqp.testing import task_accepted
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from tests.unit.sdk.amqp.deliveries import Bench, FakeDelivery, delivery, settle

EVENTS = [task_accepted(id=f"event-{number}") for number in range(6)]
IDS = [event.id for event in EVENTS]


class Recording:
    """A coroutine handler that notes events, fails as often as a test says, and waits while it is blocked."""

    def __init__(self, failures: int = 0, error: BaseException | None = None) -> None:
        self.seen: list[str] = []
        self.failures = failures
        self.error = error or ValueError("not now")
        self.open = asyncio.Event()
        self.open.set()

    async def __call__(self, event: Event) -> None:
        self.seen.append(event.id)
        await self.open.wait()
        if self.failures:
            self.failures -= 1
            raise self.error


async def test_event_is_acknowledged_after_its_handler_has_ended() -> None:
    handler = Recording()
    handler.open.clear()
    bench, held = Bench(handler), delivery(EVENTS[0])
    await bench.accept(held)
    assert (handler.seen, held.acks) == (IDS[:1], 0)
    handler.open.set()
    await settle()
    assert (held.acks, bench.stats.handled) == (1, 1)


async def test_pauses_before_retries_double_and_others_go_on_meanwhile() -> None:
    bench = Bench(handler := Recording(failures=3), max_attempts=None, concurrency=1)
    await bench.accept(held := delivery(EVENTS[0]))
    for _ in range(2):
        bench.pauses.end()
        await settle()
    await bench.accept(other := delivery(EVENTS[1]))
    assert (bench.pauses.seconds, held.acks, other.acks) == ([1.0, 2.0, 4.0], 0, 1)
    bench.pauses.end()
    await settle()
    assert (held.acks, handler.seen) == (1, [IDS[0]] * 3 + [IDS[1], IDS[0]])


async def test_event_is_parked_and_then_acknowledged_after_max_attempts() -> None:
    bench, held = Bench(Recording(failures=9), max_attempts=2), delivery(EVENTS[0])
    await bench.accept(held)
    assert (held.parked, held.acks) == ([], 0)
    bench.pauses.end()
    await settle()
    ((error, attempts),) = held.parked
    assert (str(error), attempts, held.acks) == ("not now", 2, 1)


async def test_event_is_not_acknowledged_while_it_cannot_be_parked() -> None:
    bench, held = Bench(Recording(failures=1, error=Park("odd"))), delivery(EVENTS[0], failures=2)
    await bench.accept(held)
    for _ in range(2):
        assert (held.parked, held.acks) == ([], 0)
        bench.pauses.end()
        await settle()
    assert ([attempts for _, attempts in held.parked], held.acks) == ([1], 1)


async def test_event_is_parked_later_after_an_unexpected_error() -> None:
    bench = Bench(Recording(failures=1, error=Park("odd")))
    await bench.accept(held := delivery(EVENTS[0], failures=1, parking_error=TypeError("a defect")))
    assert (held.parked, held.acks, bench.ended) == ([], 0, [(False, False)])
    bench.pauses.end()
    await settle()
    assert (len(held.parked), held.acks, bench.ended) == (1, 1, [(False, False), (True, False)])


async def test_event_whose_attempt_ends_with_an_unexpected_error_is_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The broker does not deliver it again while its channel is open, and the consumer may hold only this one."""
    bench = Bench(Recording())
    await bench.accept(held := delivery(EVENTS[0], ack_errors=[TypeError("a defect")]))
    assert (held.acks, bench.ended) == (0, [(False, False)])
    assert "attempt_lost queue=consensus.tasks event=event-0" in caplog.text
    bench.pauses.end()
    await settle()
    assert (held.acks, bench.ended) == (1, [(False, False), (True, False)])


def test_parked_copy_has_an_error_that_can_be_encoded() -> None:
    header = ContentHeader(properties=Basic.Properties())
    message = aiormq.abc.DeliveredMessage(Basic.Deliver(), header, b"", None)  # type: ignore[arg-type]
    copy = parked_copy(message, Park("text \ud800"), 1)
    assert copy.headers["x-parked-error"] == "Park: text ?"


async def test_message_that_is_no_event_is_parked_without_a_call_of_the_handler() -> None:
    bench, held = Bench(handler := Recording()), FakeDelivery(b"no event")
    await bench.accept(held)
    assert (handler.seen, held.acks, len(held.parked)) == ([], 1, 1)


async def test_copy_that_is_parked_in_the_consumed_queue_itself_is_not_acknowledged_with_the_original() -> None:
    """A consumer of a parking queue may get what it parks before it has acknowledged what it parked."""
    bench = Bench(handler := Recording(failures=1, error=Park("odd")), queue="consensus.tasks.parked")
    again = delivery(EVENTS[0], wait=60.0)
    held = delivery(EVENTS[0], at_parking=lambda: bench.processor.accept(again))
    await bench.accept(held)
    assert (held.acks, again.acks, handler.seen) == (1, 0, IDS[:1])
    assert bench.pauses.seconds == [60.0]
    bench.pauses.end()
    await settle()
    assert (held.acks, again.acks, handler.seen) == (1, 1, [IDS[0]] * 2)


async def test_copies_that_arrive_while_parking_fails_are_kept_with_the_others() -> None:
    bench = Bench(Recording(failures=1, error=Park("odd")))
    copies = [delivery(EVENTS[0], failures=1), delivery(EVENTS[0])]
    await bench.accept(*copies)
    bench.pauses.end()
    await settle()
    assert ([copy.acks for copy in copies], len(copies[0].parked)) == ([1, 1], 1)


async def test_copies_wait_for_the_running_attempt_and_are_acknowledged_with_it() -> None:
    """The second attempt handles the event, if the first fails."""
    handler = Recording(failures=1)
    handler.open.clear()
    bench, copies = Bench(handler), [delivery(EVENTS[0]) for _ in range(3)]
    await bench.accept(*copies)
    assert handler.seen == IDS[:1]
    handler.open.set()
    await settle()
    assert [copy.acks for copy in copies] == [0, 0, 0]
    bench.pauses.end()
    await settle()
    assert [copy.acks for copy in copies] == [1, 1, 1]
    assert (len(handler.seen), bench.stats.handled, bench.stats.duplicates) == (2, 1, 2)


async def test_copy_over_a_new_channel_is_not_handled_while_or_after_the_first_runs() -> None:
    handler = Recording()
    handler.open.clear()
    bench, first = Bench(handler), delivery(EVENTS[0])
    await bench.accept(first)
    first.alive = False  # the channel is lost
    await bench.accept(second := delivery(EVENTS[0], 1))
    second.alive = False  # and the next one, too
    handler.open.set()
    await settle()
    await bench.accept(third := delivery(EVENTS[0], 2))
    assert (handler.seen, first.acks, second.acks, third.acks) == (IDS[:1], 0, 0, 1)


async def test_event_whose_channel_is_lost_before_its_turn_or_retry_is_left_to_the_broker() -> None:
    handler = Recording(failures=1)
    bench = Bench(handler, concurrency=1)
    await bench.accept(retried := delivery(EVENTS[0]))
    handler.open.clear()
    await bench.accept(delivery(EVENTS[1]), waiting := delivery(EVENTS[2]))
    retried.alive = waiting.alive = False
    handler.open.set()
    bench.pauses.end()
    await settle()
    assert handler.seen == IDS[:2]
    await bench.accept(again := delivery(EVENTS[2], 1))
    assert (handler.seen, again.acks) == (IDS[:3], 1)


class Outage(Dedupe):
    """A database that is unavailable at first."""

    def __init__(self, times: int) -> None:
        self.times = times

    async def handle(self, event: Event, *rest: object) -> bool:
        if self.times:
            self.times -= 1
            raise DedupeUnavailableError("the database is unavailable")
        return True


async def test_outage_of_the_database_parks_nothing() -> None:
    bench, held = Bench(Recording(), dedupe=Outage(5), max_attempts=1), delivery(EVENTS[0])
    await bench.accept(held)
    for _ in range(5):
        assert held.acks == 0
        bench.pauses.end()
        await settle()
    assert (held.acks, held.parked) == (1, [])


async def test_drain_lets_running_handlers_end_and_begins_no_others() -> None:
    handler = Recording()
    handler.open.clear()
    bench, held = Bench(handler), [delivery(event) for event in EVENTS]
    await bench.accept(*held)
    draining = asyncio.create_task(bench.processor.drain(60))
    await settle()
    await bench.accept(late := delivery(task_accepted(id="late")))
    handler.open.set()
    assert await draining == 0
    assert handler.seen == IDS[:2]
    assert [each.acks for each in [*held, late]] == [1, 1, 0, 0, 0, 0, 0]


async def test_drain_cancels_what_does_not_end_in_time() -> None:
    handler = Recording()
    handler.open.clear()
    bench, held = Bench(handler, max_attempts=1), delivery(EVENTS[0])
    await bench.accept(held)
    assert await bench.processor.drain(0.01) == 1
    handler.open.set()
    await settle()
    assert (held.acks, held.parked) == (0, []), "being cancelled is no failure"


async def test_drain_does_not_wait_for_pauses() -> None:
    bench, held = Bench(Recording(failures=9)), delivery(EVENTS[0])
    await bench.accept(held)
    assert await bench.processor.drain(60) == 0
    bench.pauses.end()
    await settle()
    assert (held.acks, held.parked) == (0, [])


async def test_handler_that_is_cancelled_from_within_is_a_failed_attempt() -> None:
    bench, held = Bench(Recording(failures=1, error=asyncio.CancelledError())), delivery(EVENTS[0])
    await bench.accept(held)
    bench.pauses.end()
    await settle()
    assert (held.acks, bench.stats.retried) == (1, 1)


async def test_function_that_returns_a_coroutine_is_an_error_that_says_so() -> None:
    async def handle(event: Event) -> None:
        raise AssertionError

    bench, held = Bench(lambda event: handle(event), max_attempts=1), delivery(EVENTS[0])
    await bench.accept(held)
    async with asyncio.timeout(10):
        await bench.processor.idle()
    assert "make the handler itself `async def`" in str(held.parked[0][0])


async def test_memory_dedupe_forgets_the_oldest() -> None:
    bench = Bench(handler := Recording(), dedupe=MemoryDedupe(2))
    for number in (0, 1, 2, 2, 0):
        await bench.accept(delivery(EVENTS[number]))
    assert handler.seen == [IDS[0], IDS[1], IDS[2], IDS[0]]


@pytest.mark.parametrize(("earlier", "expected"), [(0, (True, False)), (1, (True, False)), (2, (True, True))])
async def test_end_of_an_attempt_says_whether_more_may_be_held(earlier: int, expected: tuple[bool, bool]) -> None:
    bench = Bench(Recording())
    await bench.accept(delivery(EVENTS[0], earlier))
    assert bench.ended == [expected]


async def test_event_that_waits_for_a_retry_lets_one_more_be_held() -> None:
    """So does a copy of it over a new channel, of which one event is held at first."""
    bench = Bench(Recording(failures=1))
    await bench.accept(delivery(EVENTS[0], 2))
    assert bench.ended == [(False, True)]
    await bench.accept(delivery(EVENTS[0], 3))
    assert bench.ended == [(False, True), (False, False)]
