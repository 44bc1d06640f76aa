"""Deliveries that came back repeatedly are handed out so that a poison message does not affect its neighbours."""

import asyncio
from collections.abc import KeysView, Sequence

from hypothesis import given
from hypothesis import strategies as st

from ingest.broker.rabbitmq.consume_channel import DeliveryToken
from ingest.broker.rabbitmq.quarantine import PATIENCE, QUIET, PoisonQuarantine
from ingest.domain.messages import Delivery
from ingest.domain.topology import DELIVERY_LIMIT, SUSPECT
from tests.support.deliveries import delivery
from tests.support.eventually import eventually
from tests.support.virtual_time_loop import in_virtual_time

PREFETCH = 50


class FakeConsumer:
    """A consuming channel with a quarantine. The tests finish the deliveries that it hands out."""

    def __init__(self, prefetch: int = PREFETCH, *, single_delivery: bool = False) -> None:
        self._unacked: dict[int, None] = {}
        self.in_progress: list[Delivery] = []
        """Deliveries that were handed out and are not finished."""
        self.handed_out: list[Delivery] = []
        """All deliveries that were handed out."""
        self.raised_by: list[int] = []
        """By how much the prefetch was raised, for each raise."""
        self.quarantine = PoisonQuarantine(self, prefetch, self._hand_out, single_delivery=single_delivery)
        self._last_tag = 0

    @property
    def unacked(self) -> KeysView[int]:
        return self._unacked.keys()

    @property
    def counts(self) -> list[int]:
        """The delivery counts of the deliveries in progress."""
        return [delivery.deliveries for delivery in self.in_progress]

    async def consume(self, prefetch: int) -> None:
        self.raised_by.append(prefetch)

    def finish(self) -> None:
        raise AssertionError("the quarantine gave the channel up")

    def deliver(self, *counts: int) -> list[Delivery]:
        """Receive one delivery per delivery count."""
        deliveries = [self._delivery(count) for count in counts]
        for arrival in deliveries:
            self._unacked[arrival.token.tag] = None
            if not self.quarantine.withhold(arrival):
                self._hand_out([arrival])
        return deliveries

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        for acked in list(deliveries):
            del self._unacked[acked.token.tag]
            self.in_progress.remove(acked)
        self.quarantine.deliveries_finished()

    async def ack_all(self) -> list[list[int]]:
        """Ack deliveries until there are none; return the delivery counts of those that were in progress together."""
        groups = []
        while self._unacked:
            await eventually(lambda: self.in_progress)
            groups.append(self.counts)
            self.ack(self.in_progress)
            await asyncio.sleep(0)
        return groups

    def _hand_out(self, deliveries: Sequence[Delivery]) -> None:
        self.in_progress += deliveries
        self.handed_out += deliveries

    def _delivery(self, count: int) -> Delivery:
        self._last_tag += 1
        return delivery(redelivered=count > 0, deliveries=count, token=DeliveryToken(self, self._last_tag))


@in_virtual_time
async def test_deliveries_are_handed_out_at_once_if_there_is_no_suspect() -> None:
    consumer = FakeConsumer()
    deliveries = consumer.deliver(0, 1, 0)
    assert consumer.in_progress == deliveries
    assert not consumer.quarantine.holds_deliveries


@in_virtual_time
async def test_round_hands_out_harmless_deliveries_together_and_then_one_suspect_at_a_time() -> None:
    """The order of arrival does not matter. Suspects with fewer deliveries are first."""
    consumer = FakeConsumer()
    consumer.deliver(0, 5, 1, 2, 0, 3)
    assert consumer.counts == [0]
    assert await consumer.ack_all() == [[0], [1, 0], [2], [3], [5]]
    assert not consumer.quarantine.holds_deliveries
    (harmless,) = consumer.deliver(1)
    assert consumer.in_progress == [harmless]


@in_virtual_time
async def test_round_starts_when_nothing_has_arrived_for_a_while() -> None:
    """Deliveries that were returned together do not arrive together."""
    consumer = FakeConsumer()
    consumer.deliver(5)
    await asyncio.sleep(QUIET * 0.9)
    consumer.deliver(2, 0)
    await asyncio.sleep(QUIET * 0.9)
    assert consumer.in_progress == []
    await asyncio.sleep(QUIET * 0.2)
    assert consumer.counts == [0]
    assert await consumer.ack_all() == [[0], [2], [5]]


@in_virtual_time
async def test_deliveries_that_arrive_during_a_round_wait_for_the_next_one() -> None:
    consumer = FakeConsumer()
    (suspect,) = consumer.deliver(7)
    await eventually(lambda: consumer.in_progress)
    consumer.deliver(0, 9, 1)
    await asyncio.sleep(2 * QUIET)
    assert consumer.in_progress == [suspect]
    assert await consumer.ack_all() == [[7], [0, 1], [9]]


@in_virtual_time
async def test_round_starts_at_once_if_the_prefetch_is_used_up() -> None:
    consumer = FakeConsumer(prefetch=2)
    consumer.deliver(2, 0)
    await asyncio.sleep(QUIET / 3)
    assert consumer.counts == [0]


@in_virtual_time
async def test_round_starts_under_steady_traffic() -> None:
    """It starts before the prefetch is used up, although the queue is never quiet."""
    consumer = FakeConsumer()
    consumer.deliver(2)
    async with asyncio.timeout(PATIENCE + QUIET):
        while not consumer.in_progress:
            consumer.deliver(0)
            await asyncio.sleep(QUIET / 2)
    assert len(consumer.unacked) < PREFETCH


@in_virtual_time
async def test_slow_delivery_delays_the_others_once() -> None:
    """A delivery that waits for another's lease delays the next one by PATIENCE. It stays in progress."""
    consumer = FakeConsumer()
    consumer.deliver(2, 3, 3, 3)
    await eventually(lambda: consumer.in_progress)
    (slow,) = consumer.in_progress
    await asyncio.sleep(PATIENCE + QUIET)
    assert consumer.counts == [2, 3]
    for _ in range(3):
        assert len(consumer.in_progress) == 2
        consumer.ack(consumer.in_progress[1:])
        await asyncio.sleep(QUIET / 3)
    assert consumer.in_progress == [slow]
    assert not consumer.quarantine.holds_deliveries


@in_virtual_time
async def test_single_delivery_mode_ends_when_a_harmless_delivery_is_finished() -> None:
    """Another consumer then takes the rest of the prefetch. A suspect that is finished does not end the mode."""
    consumer = FakeConsumer(single_delivery=True)
    consumer.deliver(4)
    await consumer.ack_all()
    assert consumer.raised_by == []
    consumer.deliver(1)
    await asyncio.sleep(QUIET / 3)
    assert consumer.raised_by == []
    await consumer.ack_all()
    await asyncio.sleep(QUIET / 3)
    assert consumer.raised_by == [PREFETCH - 1]


@in_virtual_time
async def test_stopped_quarantine_hands_out_what_it_withholds_without_waiting_for_arrivals() -> None:
    """If the deliveries were returned, the returns would count towards the delivery limit."""
    consumer = FakeConsumer()
    consumer.deliver(3, 2)
    await consumer.quarantine.stop()
    assert consumer.quarantine.holds_deliveries
    await asyncio.sleep(QUIET / 3)
    assert consumer.counts == [2]
    assert await consumer.ack_all() == [[2], [3]]


@in_virtual_time
async def test_stopped_quarantine_forgets_the_other_suspects_if_one_is_not_finished() -> None:
    """In an outage no suspect is finished. The stop waits for one; the broker redelivers the others."""
    consumer = FakeConsumer()
    consumer.deliver(*[2] * 10)
    await consumer.quarantine.stop()
    await eventually(lambda: consumer.in_progress)
    await asyncio.sleep(PATIENCE + QUIET)
    assert not consumer.quarantine.holds_deliveries
    assert len(consumer.in_progress) == 1


@in_virtual_time
async def test_closed_quarantine_hands_out_nothing() -> None:
    """The broker redelivers on another connection."""
    consumer = FakeConsumer()
    consumer.deliver(3, 2)
    consumer.quarantine.close()
    assert not consumer.quarantine.holds_deliveries
    await asyncio.sleep(2 * QUIET)
    assert consumer.in_progress == []


@given(arrivals=st.lists(st.lists(st.integers(0, 6), max_size=6), min_size=1, max_size=5))
@in_virtual_time
async def test_every_delivery_is_handed_out_once_and_every_suspect_alone(arrivals: list[list[int]]) -> None:
    consumer = FakeConsumer()
    deliveries: list[Delivery] = []
    for counts in arrivals:
        deliveries += consumer.deliver(*counts)
        await asyncio.sleep(0)
        while consumer.in_progress:
            assert len(consumer.in_progress) == 1 or max(consumer.counts) < SUSPECT
            consumer.ack(consumer.in_progress[: len(deliveries) % 3 + 1])
            await asyncio.sleep(0)
    for group in await consumer.ack_all():
        assert len(group) == 1 or max(group) < SUSPECT
    assert sorted(delivery.token.tag for delivery in consumer.handed_out) == [
        delivery.token.tag for delivery in deliveries
    ]
    assert not consumer.quarantine.holds_deliveries


@in_virtual_time
async def test_neighbours_of_a_poison_message_are_finished_before_the_delivery_limit() -> None:
    """It crashes every worker that holds it, and each crash returns all deliveries that were not finished."""
    counts, crashes = [SUSPECT] * 50, 0
    while len(counts) > 1:
        consumer = FakeConsumer(prefetch=len(counts))
        poison, *others = consumer.deliver(*counts)
        while poison not in consumer.in_progress:
            consumer.ack(consumer.in_progress)
            await asyncio.sleep(0)
        consumer.quarantine.close()
        crashes += 1
        counts = [delivery.deliveries + 1 for delivery in (poison, *others) if delivery.token.tag in consumer.unacked]
    assert SUSPECT + crashes < DELIVERY_LIMIT


@in_virtual_time
async def test_suspects_that_were_attempted_and_wait_apart_delay_no_others() -> None:
    """They wait for something else, perhaps for minutes. A poison message would have crashed its consumer."""
    consumer = FakeConsumer()
    loop = asyncio.get_running_loop()
    start = loop.time()
    consumer.deliver(*[SUSPECT] * 30)
    for _ in range(30):
        await eventually(lambda: consumer.in_progress)
        waiting = list(consumer.in_progress)
        consumer.in_progress.clear()
        consumer.quarantine.set_apart([one.token.tag for one in waiting])
    (later,) = consumer.deliver(0)
    await eventually(lambda: consumer.in_progress)
    assert consumer.in_progress == [later]
    consumer.ack([later])
    (suspect,) = consumer.deliver(SUSPECT)
    await eventually(lambda: consumer.in_progress)
    assert consumer.in_progress == [suspect]
    assert loop.time() - start < PATIENCE
