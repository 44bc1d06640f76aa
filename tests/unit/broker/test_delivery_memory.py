"""The memory that the consumers of a process share: who gets it, who waits, and that nothing is counted twice."""

import math
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from ingest.broker.rabbitmq.delivery_memory import SMALL, DeliveryMemory, Reservation

LIMIT = 10 * SMALL
LARGE = 4 * SMALL


def ignored() -> None:
    """For reservations that do not wait."""


def noted(resumed: list[str], name: str) -> Callable[[], None]:
    return lambda: resumed.append(name)


def test_large_bodies_wait_for_room_and_get_it_in_their_order() -> None:
    memory, resumed = DeliveryMemory(LIMIT), list[str]()
    first, second = (memory.reserve(LARGE, ignored) for _ in range(2))
    waiting = [memory.reserve(LARGE, noted(resumed, name)) for name in ("third", "fourth")]
    smaller = memory.reserve(SMALL + 1, noted(resumed, "smaller"))
    assert [one.is_waiting for one in (first, second, *waiting, smaller)] == [False, False, True, True, True]
    first.release()
    assert resumed == ["third"]
    second.release()
    assert resumed == ["third", "fourth", "smaller"]
    for one in (*waiting, smaller):
        one.release()
    assert memory.taken == 0


def test_small_bodies_do_not_wait_for_large_ones() -> None:
    memory = DeliveryMemory(LIMIT)
    assert [memory.reserve(LARGE, ignored).is_waiting for _ in range(3)] == [False, False, True]
    assert not any(memory.reserve(SMALL, ignored).is_waiting for _ in range(10))
    assert memory.reserve(SMALL, ignored).is_waiting


def test_body_that_is_larger_than_the_memory_gets_its_turn_when_nothing_else_is_in_it() -> None:
    memory, resumed = DeliveryMemory(LIMIT), list[str]()
    first = memory.reserve(LARGE, ignored)
    memory.reserve(2 * LIMIT, noted(resumed, "larger"))
    assert resumed == []
    first.release()
    assert resumed == ["larger"]


def test_body_that_does_not_arrive_makes_room_for_the_next() -> None:
    """Its connection was lost."""
    memory, resumed = DeliveryMemory(LIMIT), list[str]()
    memory.reserve(LARGE, ignored)
    lost = memory.reserve(2 * LIMIT, noted(resumed, "lost"))
    memory.reserve(LARGE, noted(resumed, "next"))
    for _ in range(2):
        lost.release()
    assert (resumed, memory.taken) == (["next"], 2 * LARGE)


def test_delivery_that_arrived_without_room_is_counted() -> None:
    """Also its headers."""
    memory = DeliveryMemory(SMALL)
    arrived = [memory.reserve(SMALL, ignored) for _ in range(3)]
    for one in arrived:
        one.arrived(SMALL + 100)
    assert memory.taken == 3 * (SMALL + 100)
    resumed: list[str] = []
    memory.reserve(10, noted(resumed, "next"))
    for one in arrived[:2]:
        one.release()
    assert resumed == []
    arrived[2].release()
    assert (resumed, memory.taken) == (["next"], 10)


def test_by_request_nothing_is_limited() -> None:
    memory = DeliveryMemory(math.inf)
    assert not any(memory.reserve(2**40, ignored).is_waiting for _ in range(10))


@given(st.lists(st.tuples(st.sampled_from(["reserve", "arrive", "release"]), st.integers(0, 3 * LIMIT)), max_size=60))
def test_memory_is_never_exceeded_and_nobody_waits_for_ever(steps: list[tuple[str, int]]) -> None:
    """Property: this holds for bodies of any size that arrive once they have memory, and end in any order."""
    memory, held = DeliveryMemory(LIMIT), list[Reservation]()
    for step, number in steps:
        if step == "reserve":
            held.append(memory.reserve(number, ignored))
        elif held:
            one = held[number % len(held)]
            if step == "release":
                one.release()
                held.remove(one)
            elif not one.is_waiting:
                one.arrived(one.size)
        for small in (True, False):
            own = [one for one in held if (one.size <= SMALL) is small]
            taken = [one.size for one in own if not one.is_waiting]
            assert sum(taken) <= LIMIT or len([size for size in taken if size]) == 1
            assert any(taken) or not any(one.is_waiting for one in own)
    for one in held:
        one.release()
    assert memory.taken == 0
