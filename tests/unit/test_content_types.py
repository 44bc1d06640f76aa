"""HTTP and AMQP take the same content types and encodings, and name the header or property that is wrong."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.domain.content import content_problem
from ingest.domain.errors import Reason
from ingest.parsing.parser import SubmissionParser
from ingest.worker.classify import DeliveryClassifier
from tests.support.deliveries import direct_delivery
from tests.support.shim_harness import ShimHarness
from tests.support.tasks import TASK
from tests.unit.shim.conftest import harness, parts

__all__ = ["harness", "parts"]  # fixtures

WRONG_TYPE = "content type must be application/json in UTF-8, it is "
WRONG_ENCODING = "content encoding must be left out, it is {}: send the body uncompressed"


@pytest.mark.parametrize(
    ("content_type", "content_encoding", "problem"),
    [
        ("application/json", None, None),
        ("Application/JSON", None, None),
        ("application/json; charset=utf-8", None, None),
        ("application/json;charset=UTF8", None, None),
        ('application/json ; Charset="utf-8"', None, None),
        ("application/json; version=1; charset=utf8", None, None),
        ("application/json;", None, None),
        ("application/json", "identity", None),
        ("application/json", "UTF-8", None),
        ("application/json; charset=latin-1", None, WRONG_TYPE + "application/json; charset=latin-1"),
        ("application/json; charset*=utf-16''utf-8", None, WRONG_TYPE + "application/json; charset*=utf-16''utf-8"),
        ("application/jsonx", None, WRONG_TYPE + "application/jsonx"),
        ("text/json", None, WRONG_TYPE + "text/json"),
        ("application/x-www-form-urlencoded", None, WRONG_TYPE + "application/x-www-form-urlencoded"),
        ("json", None, WRONG_TYPE + "json"),
        ("x" * 200, None, WRONG_TYPE + "x" * 100),
        ("application/json", "gzip", WRONG_ENCODING.format("gzip")),
        ("application/json", "gzip, identity", WRONG_ENCODING.format("gzip, identity")),
        ("text/plain", "gzip", WRONG_TYPE + "text/plain"),
    ],
)
async def test_http_and_amqp_agree_on_content(
    harness: ShimHarness, content_type: str, content_encoding: str | None, problem: str | None
) -> None:
    headers = {"Content-Type": content_type}
    if content_encoding is not None:
        headers["Content-Encoding"] = content_encoding
    answer = await harness.client.post("/v1/tasks", content=json.dumps(TASK).encode(), headers=headers)
    direct = direct_delivery("m", content_type=content_type, content_encoding=content_encoding)
    classified = await DeliveryClassifier(harness.store, frozenset(), SubmissionParser()).classify([direct])
    if problem is None:
        assert answer.status_code == 202
        assert classified.rejected == []
        return
    expected = problem.replace("content type", "Content-Type").replace("content encoding", "Content-Encoding")
    assert (answer.status_code, answer.json()) == (415, {"error": expected})
    (rejection,) = classified.rejected
    assert rejection.error.reason is Reason.UNSUPPORTED_CONTENT_TYPE
    assert rejection.error.message == "property " + problem.replace("content ", "content_")


async def test_http_requires_a_content_type_and_amqp_does_not(harness: ShimHarness) -> None:
    answer = await harness.client.post("/v1/tasks", content=json.dumps(TASK).encode())
    assert (answer.status_code, answer.json()) == (
        415,
        {"error": "Content-Type must be application/json in UTF-8, it is missing"},
    )
    direct = direct_delivery("m", content_type=None)
    assert (await DeliveryClassifier(harness.store, frozenset(), SubmissionParser()).classify([direct])).rejected == []


@given(st.text(max_size=300), st.text(max_size=50))
def test_no_content_type_raises_anything(content_type: str, content_encoding: str) -> None:
    content_problem(content_type, content_encoding)
