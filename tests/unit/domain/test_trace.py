"""Trace contexts that are passed from requests to events."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.domain import events
from ingest.domain.submissions import task_submission
from ingest.domain.trace import Trace, trace_of, trace_of_http
from tests.support.tasks import TASK

IDS = "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        "junk",
        f"00-{IDS}-more",
        f"ff-{IDS}",
        f"00-{IDS}".upper(),
        f"00-{'0' * 32}-b7ad6b7169203331-01",
        f"00-0af7651916cd43dd8448eb211c80319c-{'0' * 16}-01",
        f"01-{IDS}x",
        f" 00-{IDS}",
        f"00-{IDS}\n",
        7,
        b"00",
        None,
        {"a": 1},
        ["00"],
    ],
)
def test_invalid_traceparent_is_ignored(traceparent: object) -> None:
    """AMQP headers of a direct producer can have values of any type."""
    assert trace_of({"traceparent": traceparent, "tracestate": "a=b"}) is None
    assert traceparent is None or trace_of_http({b"traceparent": str(traceparent).encode()}) is None


@pytest.mark.parametrize("traceparent", [f"00-{IDS}", f"01-{IDS}", f"cc-{IDS}-more"])
def test_valid_traceparent_is_passed_on_as_version_00(traceparent: str) -> None:
    """Fields that only higher versions have are dropped."""
    assert trace_of({"traceparent": traceparent}) == Trace(f"00-{IDS}")
    assert trace_of_http({b"traceparent": traceparent.encode()}) == Trace(f"00-{IDS}")


@pytest.mark.parametrize("tracestate", ["", "a=\n", "ü=1", "a" * 513, 5, None])
def test_invalid_tracestate_is_dropped_and_traceparent_kept(tracestate: object) -> None:
    assert trace_of({"traceparent": f"00-{IDS}", "tracestate": tracestate}) == Trace(f"00-{IDS}")


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=512))
def test_trace_adds_only_its_attributes_and_headers_to_event(tracestate: str) -> None:
    """The attributes are those of CloudEvents, the headers those of AMQP."""
    task = task_submission(TASK, "c", frozenset(), "k").tasks[0]
    plain = events.task_accepted(task, "c", 1_775_736_000_000, key=None)
    traced = events.traced(plain, Trace(f"00-{IDS}", tracestate))
    attributes = {"traceparent": f"00-{IDS}", "tracestate": tracestate}
    assert msgspec.json.decode(traced.body) == msgspec.json.decode(plain.body) | attributes
    assert traced.headers == attributes
    assert msgspec.structs.replace(traced, body=plain.body, headers={}) == plain
