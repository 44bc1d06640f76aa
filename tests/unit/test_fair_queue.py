"""The queue that serves customers in turn."""

import pytest

from ingest.fair_queue import FairQueue, QueueFull


def queue_of(items: str, limit: int = 10) -> FairQueue[str]:
    """A queue with items such as `a1`, whose customer is the letter."""
    queue: FairQueue[str] = FairQueue(limit)
    for item in items.split():
        assert queue.put(item[0], item) is None
    return queue


def test_customers_are_served_in_turn_and_each_in_the_order_of_its_items() -> None:
    queue = queue_of("a1 a2 a3 b1 c1 c2")
    assert queue.take(4) == ["a1", "b1", "c1", "a2"]
    assert queue.take(10) == ["c2", "a3"]
    assert queue.take(10) == []


def test_length_and_customers_are_those_of_the_items_that_wait() -> None:
    queue = queue_of("a1 a2 b1")
    assert (len(queue), list(queue.customers())) == (3, ["a", "b"])
    assert queue.take_from("b") == "b1"
    assert (len(queue), list(queue.customers())) == (2, ["a"])
    assert queue.take(1) == ["a1"]
    assert queue.take_from("a") == "a2"
    assert (len(queue), list(queue.customers())) == (0, [])
    with pytest.raises(KeyError):
        queue.take_from("a")


def test_customer_whose_item_was_taken_is_served_after_the_others() -> None:
    queue = queue_of("a1 a2 b1")
    assert queue.take_from("a") == "a1"
    assert queue.take(2) == ["b1", "a2"]


def test_full_queue_displaces_the_latest_item_of_the_customer_with_most_of_them() -> None:
    queue = queue_of("a1 b1 b2 b3", limit=4)
    assert queue.put("c", "c1") == "b3"
    assert len(queue) == 4
    assert queue.take(10) == ["a1", "b1", "c1", "b2"]


@pytest.mark.parametrize("customer", ["a", "b"])
def test_full_queue_refuses_an_item_of_a_customer_that_would_have_as_many_as_any_other(customer: str) -> None:
    queue = queue_of("a1 b1 b2", limit=3)
    with pytest.raises(QueueFull):
        queue.put(customer, f"{customer}9")
    assert queue.take(10) == ["a1", "b1", "b2"]


def test_place_of_an_item_that_was_taken_is_free() -> None:
    queue = queue_of("a1 a2", limit=2)
    queue.take_from("a")
    assert queue.put("a", "a3") is None
    queue.take(1)
    assert queue.put("a", "a4") is None
    assert queue.take(10) == ["a3", "a4"]
