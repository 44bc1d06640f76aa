"""How queues share what is taken."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from ingest.worker.deficit_round_robin import QUANTUM, DeficitRoundRobin


def filled(**costs: list[int]) -> DeficitRoundRobin[str]:
    """Queues whose items have these costs. An item is its queue's name."""
    waiting: DeficitRoundRobin[str] = DeficitRoundRobin()
    for queue, own in costs.items():
        for cost in own:
            waiting.put(queue, queue, cost)
    return waiting


def test_single_queue_is_taken_in_order_up_to_the_limit() -> None:
    waiting: DeficitRoundRobin[int] = DeficitRoundRobin()
    for number in range(200):
        waiting.put("q", number, 1)
    assert waiting.take(150) == list(range(150))
    assert waiting.cost == 50
    assert waiting.take(150) == list(range(150, 200))
    assert not waiting


def test_queue_with_one_item_does_not_wait_for_a_backlog() -> None:
    waiting = filled(backlog=[1] * 10_000)
    waiting.take(100)
    waiting.put("quiet", "quiet", 1)
    assert "quiet" in waiting.take(2 * QUANTUM)


def test_queues_share_by_cost_and_not_by_number() -> None:
    """Expensive items of one queue, cheap ones of another: both get the same."""
    waiting = filled(singles=[1] * 10_000, batches=[1000] * 10)
    taken = Counter[str]()
    while taken.total() < 4000:
        taken.update(waiting.take(250))
    assert taken["singles"] - 1000 <= 1000 * taken["batches"] <= taken["singles"] + 1000


def test_queue_that_is_empty_between_its_expensive_items_gains_nothing() -> None:
    waiting = filled(singles=[1] * 100_000)
    singles = 0
    for _ in range(20):
        waiting.put("batches", "batches", 1000)
        while "batches" not in (taken := waiting.take(250)):
            singles += len(taken)
        singles += taken.count("singles")
    assert singles >= 19 * 1000 - QUANTUM


def test_overdraft_shrinks_while_the_others_have_their_turns() -> None:
    waiting = filled(others=[1] * 100_000, expensive=[8000])
    while "expensive" not in waiting.take(250):
        pass
    for _ in range(4000 // 250):
        waiting.take(250)
    waiting.put("expensive", "expensive", 1)
    others = 0
    while "expensive" not in (taken := waiting.take(250)):
        others += len(taken)
    assert 3000 < others < 4500


def test_queues_share_by_weight() -> None:
    waiting: DeficitRoundRobin[str] = DeficitRoundRobin({"a": 3.0, "b": 1.0}.__getitem__)
    for queue in "ab":
        for _ in range(10_000):
            waiting.put(queue, queue, 1)
    taken = Counter(item for _ in range(32) for item in waiting.take(128))
    assert taken == {"a": 3 * 1024, "b": 1024}


def test_item_that_costs_more_than_the_limit_is_taken_alone() -> None:
    waiting = filled(a=[1], b=[1000, 1])
    taken = [waiting.take(250) for _ in range(3)]
    assert taken == [["a"], ["b"], ["b"]]


def test_overdraft_is_forgotten_once_no_queue_waits() -> None:
    waiting = filled(a=[1000])
    waiting.take(10)
    for queue in "ab":
        waiting.put(queue, queue, 1)
    assert waiting.take(10) == ["a", "b"]


def test_discarded_items_cost_nothing() -> None:
    waiting: DeficitRoundRobin[int] = DeficitRoundRobin()
    for number in range(10):
        waiting.put("q", number, 3)
        waiting.put("r", number, 1)
    waiting.discard("q", lambda number: number % 2 == 0)
    waiting.discard("r", lambda _: False)
    waiting.discard("unknown", lambda _: False)
    assert waiting.cost == 15
    assert waiting.take(100) == [0, 2, 4, 6, 8]


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 500)), max_size=60),
    st.lists(st.integers(1, 400), min_size=1, max_size=20),
)
def test_every_item_is_taken_once_in_the_order_of_its_queue(items: list[tuple[str, int]], limits: list[int]) -> None:
    waiting: DeficitRoundRobin[tuple[int, str, int]] = DeficitRoundRobin()
    for number, (queue, cost) in enumerate(items):
        waiting.put(queue, (number, queue, cost), cost)
    taken: list[tuple[int, str, int]] = []
    for most in [*limits, *[250] * len(items)]:
        part = waiting.take(most)
        assert len(part) <= 1 or sum(cost for _, _, cost in part) <= most
        taken += part
    assert sorted(taken) == [(number, queue, cost) for number, (queue, cost) in enumerate(items)]
    for name in "abc":
        assert [item for item in taken if item[1] == name] == sorted(item for item in taken if item[1] == name)
    assert (waiting.cost, bool(waiting)) == (0, False)
