"""Which customers are heavy, with an injected clock."""

import pytest
from structlog.testing import capture_logs

from ingest.shim.heavy import FLOOR, WINDOW, HeavyCustomers


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Harness:
    """Submissions of customers at the time of a clock."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.heavy = HeavyCustomers(clock=self.clock)

    def add(self, cust_id: str, tasks: int, times: int = 1) -> bool:
        """Count `tasks` so many times; return whether the customer is heavy then."""
        for _ in range(times):
            is_heavy = self.heavy.add(cust_id, tasks)
        return is_heavy


@pytest.fixture
def harness() -> Harness:
    return Harness()


def test_customer_is_ordinary_up_to_the_floor(harness: Harness) -> None:
    assert harness.add("c", 1, FLOOR) is False
    assert harness.add("c", 1) is True


def test_batch_weighs_as_much_as_its_tasks(harness: Harness) -> None:
    assert [harness.add("c", 1000) for _ in range(3)] == [False, False, True]


def test_customer_with_a_small_share_is_ordinary(harness: Harness) -> None:
    """It takes much, and so do all others."""
    for _ in range(100):
        is_heavy = [harness.add(f"c{number}", 100) for number in range(40)]
    assert not any(is_heavy)


def test_twelve_customers_that_flood_are_heavy_beside_thirty_quiet_ones(harness: Harness) -> None:
    """Each has less than a tenth of all, but more than twice the mean."""
    for number in range(30):
        harness.add(f"quiet{number}", 10)
    for _ in range(10):
        is_heavy = [harness.add(f"c{number}", 1000) for number in range(12)]
    assert all(is_heavy)
    assert harness.add("quiet0", 1) is False


def test_tasks_count_for_one_to_two_windows(harness: Harness) -> None:
    harness.add("c", FLOOR)
    harness.clock.now += WINDOW
    assert harness.add("c", 10) is True
    harness = Harness()
    harness.add("c", FLOOR)
    harness.clock.now += 1.9 * WINDOW
    assert harness.add("c", 10) is False


def test_heavy_customer_stays_heavy_until_it_takes_half_of_the_limit(harness: Harness) -> None:
    harness.add("c", FLOOR + 1)
    for part in (0.9, 0.6):
        harness.clock.now += WINDOW
        assert harness.add("c", int(FLOOR * part)) is True
    harness.clock.now += WINDOW
    assert harness.add("c", 1) is True
    harness.clock.now += 0.5 * WINDOW
    assert harness.add("c", 1) is False


def test_customer_that_stops_is_released_by_the_submissions_of_others(harness: Harness) -> None:
    harness.add("c", FLOOR + 1)
    with capture_logs() as logs:
        for _ in range(3):
            harness.clock.now += WINDOW
            harness.add("other", 1)
    assert [(log["event"], log["cust_id"]) for log in logs] == [("customer_no_longer_heavy", "c")]


def test_heavy_customer_is_ordinary_after_a_long_pause_of_all(harness: Harness) -> None:
    harness.add("c", FLOOR + 1)
    harness.clock.now += 100 * WINDOW
    assert harness.add("c", 1) is False


def test_heavy_customer_is_found_among_any_number_of_others_in_bounded_memory(harness: Harness) -> None:
    became_heavy = None
    for number in range(100_000):
        harness.add(f"c{number}", 1)
        if number % 8 == 0 and harness.add("heavy", 2) and became_heavy is None:
            became_heavy = number
    assert became_heavy is not None
    assert 4 * FLOOR <= became_heavy <= 5 * FLOOR
    assert len(harness.heavy._current) <= 2000


def test_change_is_logged_once_with_the_share(harness: Harness) -> None:
    harness.add("other", FLOOR)
    with capture_logs() as logs:
        harness.add("c", 1000, 10)
    assert [(log["event"], log["cust_id"], log["tasks"]) for log in logs] == [("customer_heavy", "c", 3000)]


def test_weight_of_one_customer_does_not_hide_that_another_is_heavy(harness: Harness) -> None:
    harness.heavy.add("throttled", 1000, weight=0.01)
    assert harness.add("c", 1, FLOOR + 1) is True
