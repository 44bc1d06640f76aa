"""What came back again and again is handed out in such an order that it takes no neighbours with it."""

import asyncio
from collections.abc import KeysView, Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.broker.rabbitmq.consumer import DeliveryToken
from ingest.broker.rabbitmq.quarantine import PATIENCE, QUIET, SUSPECT, PoisonQuarantine
from ingest.domain.messages import Delivery
from ingest.domain.topology import DELIVERY_LIMIT
from tests.support.deliveries import delivery

PREFETCH = 50


class FrameSink:
    """A channel that consumes, and whoever works on what it hands out."""

    def __init__(self, prefetch: int = PREFETCH, *, single_delivery: bool = False) -> None:
        self._unacked: dict[int, None] = {}
        self.out: list[Delivery] = []
        self.handed_out: list[Delivery] = []
        self.opened: list[int] = []
        self.suspects = PoisonQuarantine(self, prefetch, self._hand_out, single_delivery=single_delivery)
        self._tags = 0

    @property
    def unacked(self) -> KeysView[int]:
        return self._unacked.keys()

    async def consume(self, prefetch: int) -> None:
        self.opened.append(prefetch)

    def finish(self) -> None:
        raise AssertionError("given up")

    def come(self, *counts: int) -> list[Delivery]:
        """Deliveries come that have come back so often before."""
        come = [self._delivery(count) for count in counts]
        for each in come:
            self._unacked[each.token[1]] = None
            if not self.suspects.withhold(each):
                self._hand_out([each])
        return come

    def settle(self, deliveries: Sequence[Delivery]) -> None:
        for each in list(deliveries):
            del self._unacked[each.token[1]]
            self.out.remove(each)
        self.suspects.deliveries_finished()

    async def work(self) -> list[list[int]]:
        """Settle all that is handed out, as it is; the delivery counts of what was out together."""
        together = []
        while self._unacked:
            while not self.out:
                await asyncio.sleep(QUIET / 10)
            together.append([each.deliveries for each in self.out])
            self.settle(self.out)
            await asyncio.sleep(0)
        return together

    def _hand_out(self, deliveries: Sequence[Delivery]) -> None:
        self.out += deliveries
        self.handed_out += deliveries

    def _delivery(self, count: int) -> Delivery:
        self._tags += 1
        return delivery(redelivered=count > 0, deliveries=count, token=DeliveryToken(self, self._tags))


async def until(lane: FrameSink, out: int) -> None:
    async with asyncio.timeout(10):
        while len(lane.out) != out:
            await asyncio.sleep(QUIET / 10)


async def test_the_unsuspicious_are_handed_out_as_they_come() -> None:
    """No suspect, no waiting."""
    lane = FrameSink()
    come = lane.come(0, 1, 0)
    assert lane.out == come
    assert not lane.suspects.holds_deliveries


async def test_one_round() -> None:
    """All that has come with a suspect is settled before it, whatever the order: together, then least first."""
    lane = FrameSink()
    lane.come(0, 5, 1, 2, 0, 3)
    assert [each.deliveries for each in lane.out] == [0]
    assert await lane.work() == [[0], [1, 0], [2], [3], [5]]
    assert not lane.suspects.holds_deliveries
    assert lane.come(1)[0] in lane.out


async def test_what_comes_meanwhile_waits_for_the_next_round() -> None:
    """A suspect is alone when its turn is: nothing that comes is handed out beside it, nor before it is settled."""
    lane = FrameSink()
    (first,) = lane.come(7)
    await until(lane, 1)
    lane.come(0, 9, 1)
    await asyncio.sleep(2 * QUIET)
    assert lane.out == [first]
    assert await lane.work() == [[7], [0, 1], [9]]


async def test_full_is_all_that_can_come() -> None:
    """Where it holds all that it may, nobody waits for more."""
    lane = FrameSink(prefetch=2)
    lane.come(2, 0)
    await asyncio.sleep(QUIET / 3)
    assert [each.deliveries for each in lane.out] == [0]


async def test_a_trickle_does_not_put_it_off() -> None:
    """Where something comes all the time, a round begins all the same, before all that it may hold has come."""
    lane = FrameSink()
    lane.come(2)
    async with asyncio.timeout(PATIENCE + QUIET):
        while not lane.out:
            lane.come(0)
            await asyncio.sleep(QUIET / 2)
    assert len(lane.unacked) < PREFETCH


async def test_what_takes_too_long_keeps_nobody_waiting() -> None:
    """One that waits for somebody else's lease delays the others for PATIENCE, once; out of patience is not settled."""
    lane = FrameSink()
    lane.come(2, 3, 3, 3)
    await until(lane, 1)
    (slow,) = lane.out
    await asyncio.sleep(PATIENCE + QUIET)
    assert [each.deliveries for each in lane.out] == [2, 3]
    for _ in range(3):
        await until(lane, 2)
        lane.settle(lane.out[1:])
        await asyncio.sleep(QUIET / 3)
    assert lane.out == [slow]
    assert not lane.suspects.holds_deliveries


async def test_narrow_until_something_unsuspicious_is_settled() -> None:
    """Then it takes the rest of its prefetch, by another consumer; a suspect that is settled is no reason."""
    lane = FrameSink(single_delivery=True)
    lane.come(4)
    await lane.work()
    assert lane.opened == []
    lane.come(1)
    await asyncio.sleep(QUIET / 3)
    assert lane.opened == []
    await lane.work()
    await asyncio.sleep(QUIET / 3)
    assert lane.opened == [PREFETCH - 1]


async def test_stopped_it_hands_out_what_is_here() -> None:
    """Nothing more comes, so nobody waits for it; what is here would be counted if it were given back."""
    lane = FrameSink()
    lane.come(3, 2)
    await lane.suspects.stop()
    assert lane.suspects.holds_deliveries
    await asyncio.sleep(QUIET / 3)
    assert [each.deliveries for each in lane.out] == [2]
    assert await lane.work() == [[2], [3]]


async def test_stopped_it_waits_for_nothing_that_is_not_settled() -> None:
    """As in an outage: the rest comes again elsewhere, and whoever stops is not held up suspect by suspect."""
    lane = FrameSink()
    lane.come(*[2] * 10)
    await lane.suspects.stop()
    await until(lane, 1)
    await asyncio.sleep(PATIENCE + QUIET)
    assert not lane.suspects.holds_deliveries
    assert len(lane.out) == 1


async def test_closed_it_hands_out_nothing() -> None:
    """What is withheld comes again with another connection."""
    lane = FrameSink()
    lane.come(3, 2)
    lane.suspects.close()
    assert not lane.suspects.holds_deliveries
    await asyncio.sleep(2 * QUIET)
    assert lane.out == []


counts = st.lists(st.integers(0, 6), max_size=6)


@settings(max_examples=25, deadline=None)
@given(arrivals=st.lists(counts, min_size=1, max_size=5))
def test_each_is_handed_out_once_and_suspects_alone(arrivals: list[list[int]]) -> None:
    """Whatever comes whenever: all of it is handed out once, and a suspect never beside anything else."""

    async def run() -> None:
        lane = FrameSink()
        come: list[Delivery] = []
        for some in arrivals:
            come += lane.come(*some)
            await asyncio.sleep(0)
            while lane.out:
                assert len(lane.out) == 1 or not any(each.deliveries >= SUSPECT for each in lane.out)
                lane.settle(lane.out[: len(come) % 3 + 1])
                await asyncio.sleep(0)
        for together in await lane.work():
            assert len(together) == 1 or max(together) < SUSPECT
        assert sorted(each.token[1] for each in lane.handed_out) == [each.token[1] for each in come]
        assert not lane.suspects.holds_deliveries

    asyncio.run(run())


async def test_the_culprit_takes_few_with_it() -> None:
    """One kills whatever holds it, until it is alone: what came back as often is settled within a few deaths."""
    counts, deaths = [SUSPECT] * 50, 0
    while len(counts) > 1:
        lane = FrameSink(prefetch=len(counts))
        poison, *others = lane.come(*counts)
        while poison not in lane.out:
            lane.settle(lane.out)
            await asyncio.sleep(0)
        lane.suspects.close()
        deaths += 1
        counts = [each.deliveries + 1 for each in (poison, *others) if each.token[1] in lane.unacked]
    assert SUSPECT + deaths < DELIVERY_LIMIT
