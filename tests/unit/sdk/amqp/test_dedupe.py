"""One suite for every dedupe strategy: each event has its effects once, whatever is delivered."""

import asyncio
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from asg_gateway.amqp import Event
from asg_gateway.amqp.testing import FakeConsumer, submission_rejected, task_accepted

from tests.unit.sdk.amqp.strategies import STRATEGIES, Strategy, sqlite

EVENTS = [task_accepted(id=f"event-{number}") for number in range(10)]
strategies = dict(STRATEGIES)
if sys.version_info >= (3, 12):
    strategies |= {"sqlite3-autocommit": sqlite(autocommit=True), "sqlite3-pep249": sqlite(autocommit=False)}


@pytest.fixture(params=list(strategies.values()), ids=list(strategies))
def strategy(request: pytest.FixtureRequest, tmp_path: Path) -> Strategy:
    made: Strategy = request.param(tmp_path / "app.db")
    return made


def consumer(strategy: Strategy, failing: "Failing | None" = None, **options: Any) -> FakeConsumer:
    """Return a consumer that notes events, as a new process would be."""
    return FakeConsumer(strategy.handler(failing or (lambda event: None)), dedupe=strategy.new(), **options)


class Failing:
    """Raises the first so many times that it is called with the first event."""

    def __init__(self, failures: int) -> None:
        self.left = failures
        self.calls = 0

    def __call__(self, event: Event) -> None:
        if event.id != EVENTS[0].id:
            return
        self.calls += 1
        self.left -= 1
        if self.left >= 0:
            raise ValueError("not now")


async def test_copies_are_handled_once(strategy: Strategy) -> None:
    outcome = await consumer(strategy).deliver(*EVENTS, *EVENTS, EVENTS[0])
    assert (outcome.handled, outcome.duplicates, outcome.parked) == (10, 11, [])
    assert strategy.noted() == [event.id for event in EVENTS]


async def test_copy_that_comes_later_to_another_process_is_dropped(strategy: Strategy) -> None:
    await consumer(strategy).deliver(EVENTS[0])
    outcome = await consumer(strategy).deliver(EVENTS[0], EVENTS[1])
    assert (outcome.handled, outcome.duplicates) == (1, 1)
    assert strategy.noted() == [EVENTS[0].id, EVENTS[1].id]


async def test_effects_of_a_failed_attempt_are_undone_and_the_event_is_tried_again(strategy: Strategy) -> None:
    failing = Failing(2)
    outcome = await consumer(strategy, failing).deliver(EVENTS[0])
    assert (outcome.handled, outcome.retried, failing.calls) == (1, 2, 3)
    assert strategy.noted() == [EVENTS[0].id] * (1 if strategy.transactional else 3)


async def test_event_that_fails_max_attempts_times_is_parked_and_can_be_handled_later(strategy: Strategy) -> None:
    failing = Failing(3)
    outcome = await consumer(strategy, failing, max_attempts=3).deliver(EVENTS[0], EVENTS[1])
    (parked,) = outcome.parked
    assert (outcome.handled, parked.attempts, str(parked.error)) == (1, 3, "not now")
    assert (await consumer(strategy).deliver(EVENTS[0])).handled == 1
    assert strategy.noted().count(EVENTS[0].id) == (1 if strategy.transactional else 4)


async def test_events_of_another_queue_are_not_duplicates(strategy: Strategy) -> None:
    """`consensus.tasks` and `webhook.dispatch` have copies of the same event, which may share a database."""
    for queue in ("consensus.tasks", "webhook.dispatch"):
        fake = FakeConsumer(strategy.handler(lambda event: None), dedupe=strategy.new(), queue=queue)
        assert (await fake.deliver(EVENTS[0])).handled == 1


async def test_event_from_the_parking_queue_is_a_duplicate_of_the_one_from_its_queue(strategy: Strategy) -> None:
    for queue, handled in (("consensus.tasks", 1), ("consensus.tasks.parked", 0)):
        fake = FakeConsumer(strategy.handler(lambda event: None), dedupe=strategy.new(), queue=queue)
        assert (await fake.deliver(EVENTS[0])).handled == handled


async def test_several_consumers_that_get_copies_at_the_same_time_handle_each_event_once(strategy: Strategy) -> None:
    """Their attempts collide: the loser of each waits, and finds out who has won."""
    outcomes = await asyncio.gather(*[consumer(strategy, concurrency=4).deliver(*EVENTS) for _ in range(3)])
    if strategy.transactional:
        assert sorted(strategy.noted()) == [event.id for event in EVENTS]
        assert sum(outcome.handled for outcome in outcomes) == 10
        assert sum(outcome.duplicates for outcome in outcomes) == 20
    assert [parked for outcome in outcomes for parked in outcome.parked] == []


async def test_second_of_two_colliding_attempts_handles_the_event_if_the_first_fails(strategy: Strategy) -> None:
    if not strategy.transactional:
        pytest.skip("it has no transactions")
    first_runs = threading.Event()

    def fail(event: Event) -> None:
        first_runs.set()
        raise ValueError("not now")

    first = FakeConsumer(strategy.handler(fail), dedupe=strategy.new(), max_attempts=1)
    failing = asyncio.create_task(first.deliver(EVENTS[0]))
    await asyncio.to_thread(first_runs.wait, 10)
    assert (await consumer(strategy).deliver(EVENTS[0])).handled == 1
    assert len((await failing).parked) == 1
    assert strategy.noted() == [EVENTS[0].id]


async def test_every_kind_of_event_reaches_the_handler(strategy: Strategy) -> None:
    seen: list[Event] = []
    events = [task_accepted(), submission_rejected()]
    await FakeConsumer(strategy.handler(seen.append), dedupe=strategy.new()).deliver(*events)
    assert seen == events
