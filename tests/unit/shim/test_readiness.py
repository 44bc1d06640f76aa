"""`/readyz` does not pass every question on to the broker and the store."""

import asyncio

from ingest.domain.errors import StoreUnavailable
from ingest.shim.readiness import Dependencies, Readiness
from tests.support.fakes import Clock


class CountingStore:
    """Counts how often it is asked whether it takes writes."""

    def __init__(self) -> None:
        self.asked = 0
        self.available = True

    async def ready(self) -> None:
        self.asked += 1
        await asyncio.sleep(0)
        if not self.available:
            raise StoreUnavailable("down")


async def available() -> None:
    """The broker."""


async def test_many_questions_in_one_second_ask_the_store_once() -> None:
    store, clock = CountingStore(), Clock()
    readiness = Readiness(available, store.ready, clock)
    answers = await asyncio.gather(*[readiness.dependencies() for _ in range(100)])
    clock.now += 0.9
    answers.append(await readiness.dependencies())
    assert set(answers) == {Dependencies("ok", "ok")}
    assert store.asked == 1


async def test_state_is_asked_again_after_a_second() -> None:
    store, clock = CountingStore(), Clock()
    readiness = Readiness(available, store.ready, clock)
    assert (await readiness.dependencies()).ready
    store.available = False
    clock.now += 1
    assert await readiness.dependencies() == Dependencies("ok", "unavailable")
    assert store.asked == 2


async def test_client_that_disconnects_does_not_end_the_question_of_others() -> None:
    store = CountingStore()
    readiness = Readiness(available, store.ready, Clock())
    leaving, staying = [asyncio.create_task(readiness.dependencies()) for _ in range(2)]
    await asyncio.sleep(0)
    leaving.cancel()
    assert (await staying).ready
