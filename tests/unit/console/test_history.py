"""The console collects the state every few seconds and remembers 15 minutes."""

import asyncio

from structlog.testing import capture_logs

from ingest.console.history import INTERVAL, SPAN, History
from ingest.domain.errors import BrokerUnavailable
from ingest.domain.overview import BrokerState, Overview, QueueState, StoreState
from tests.support.fakes import Clock
from tests.support.virtual_time_loop import in_virtual_time


class Service:
    """Has one more message in each of its queues each time it is looked at. `fails`: it cannot be looked at."""

    def __init__(self) -> None:
        self.looks = 0
        self.fails = False
        self.queues = ["ingest.http.0", "ingest.http.1", "ingest.dead"]

    async def collect(self) -> Overview:
        self.looks += 1
        if self.fails:
            raise BrokerUnavailable("no connection")
        queues = [QueueState(name=name, ready=self.looks) for name in self.queues]
        return Overview(at=0, broker=BrokerState(name="b", queues=queues), store=StoreState(name="s"))


def ready(state: QueueState) -> float:
    return state.ready


@in_virtual_time
async def test_classes_are_sampled_until_the_console_stops() -> None:
    service = Service()
    history = History(service.collect, clock=asyncio.get_running_loop().time)
    running = asyncio.create_task(history.run())
    await history.wait()
    await asyncio.sleep(2.5 * INTERVAL)
    running.cancel()
    assert service.looks == 3
    ages = [2.5 * INTERVAL, 1.5 * INTERVAL, 0.5 * INTERVAL]
    assert history.of("ingest.http.*", ready) == list(zip(ages, [2, 4, 6], strict=True))
    assert history.of("ingest.dead", ready) == list(zip(ages, [1, 2, 3], strict=True))


async def test_only_the_last_15_minutes_are_kept() -> None:
    """However long a collection takes."""
    service, clock = Service(), Clock()
    history = History(service.collect, clock=clock)
    for _ in range(5):
        await history.sample()
        clock.now += SPAN / 3
    assert [round(age / SPAN, 2) for age, _ in history.of("ingest.dead", ready)] == [1.0, 0.67, 0.33]
    assert len(history._samples) == 4
    service.queues = ["ingest.tasks"]
    await history.sample()
    assert history.of("ingest.dead", ready)[-1] == (0, None)
    assert history.of("ingest.tasks", ready)[-1] == (0, 6)


async def test_failure_is_remembered_until_the_state_is_collected_again() -> None:
    history = History((service := Service()).collect)
    service.fails = True
    await history.sample()
    await history.wait()
    assert (history.latest, history.failure) == (None, "no connection")
    service.fails = False
    await history.sample()
    assert (history.latest is not None, history.failure) == (True, "")


async def test_odd_answer_of_a_server_does_not_end_the_console() -> None:
    """For example a maintenance page where JSON is expected."""

    async def collect() -> Overview:
        raise KeyError("name")

    history = History(collect)
    with capture_logs() as logs:
        await history.sample()
    assert history.failure == "KeyError, see the log of the console"
    assert [entry["event"] for entry in logs] == ["overview_not_collected"]
