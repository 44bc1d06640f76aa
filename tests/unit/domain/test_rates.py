"""Rate limits: how they are written and stored, and how many permits a claim is granted."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.domain.customers import Customer
from ingest.domain.rates import PermitClaim, RateLimit, granted


@pytest.mark.parametrize(
    ("limit", "text", "words", "chunk"),
    [
        (RateLimit(1, 1), "1/s", "1 submission per second", 1),
        (RateLimit(39, 1), "39/s", "39 submissions per second", 1),
        (RateLimit(50, 1), "50/s", "50 submissions per second", 2),
        (RateLimit(600, 60), "600/m", "600 submissions per minute", 30),
        (RateLimit(5, 10), "5/10s", "5 submissions per 10 s", 1),
    ],
)
def test_limit_is_written_as_people_read_it(limit: RateLimit, text: str, words: str, chunk: int) -> None:
    """The last one is of a later version, perhaps."""
    assert (str(limit), limit.words, limit.chunk) == (text, words, chunk)


@given(st.integers(1, 100), st.lists(st.integers(1, 30), max_size=50))
def test_claims_of_one_window_are_granted_exactly_its_limit(limit: int, counts: list[int]) -> None:
    """As long as enough is claimed; never more, and never less than there is."""
    claimed = sum_granted = 0
    for count in counts:
        claimed += count
        sum_granted += granted(limit, claimed, count)
        assert sum_granted == min(limit, claimed)


def test_customer_of_a_version_without_rates_has_no_limit() -> None:
    assert msgspec.json.decode(b'{"cust_id": "c"}', type=Customer).rate is None


def test_version_that_does_not_know_a_field_of_a_customer_ignores_it() -> None:
    """So versions without rates can read a customer that has one, in both stores."""
    record = {"cust_id": "c", "later": {"limit": 5, "seconds": 1}}
    assert msgspec.convert(record, Customer) == msgspec.json.decode(msgspec.json.encode(record), type=Customer)


@pytest.mark.parametrize(("seconds", "kept"), [(1, 62), (60, 180)])
def test_counter_outlives_its_window_by_the_skew_of_clocks(seconds: int, kept: int) -> None:
    assert PermitClaim("c", seconds, 1, 1).time_to_live == kept
