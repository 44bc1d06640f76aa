"""When the SDK retries, how long it waits, and which error it raises."""

import time
from email.utils import formatdate

import asg_gateway
import httpx
import pytest
from asg_gateway._retry import Attempts, Limits
from hypothesis import example, given
from hypothesis import strategies as st

from ingest.shim import problems
from tests.unit.sdk.gateway import CALL, TASK, Gateway, batch, submit

URL = "https://gateway.example"
TEMPORARY = [408, 409, 429, 500, 502, 503, 504, 520]


class Clock:
    """Monotonic seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_generated_key_is_the_same_for_all_attempts_of_a_call() -> None:
    """The next call has a different key."""
    replay = httpx.Response(200, json=TASK | {"idempotent": True})
    accepted = httpx.Response(202, json=TASK)
    gateway = Gateway(httpx.ConnectError("refused"), httpx.Response(503), replay, accepted)
    client = gateway.client()
    assert submit(client).idempotent
    submit(client)
    keys = [body["idempotency_key"] for body in gateway.bodies]
    assert keys[0] == keys[1] == keys[2] != keys[3]


@pytest.mark.parametrize("status", [status for status in TEMPORARY if status != 429])
def test_temporary_status_is_retried_after_at_least_retry_after(status: int) -> None:
    """Jitter adds at most a quarter to `Retry-After`. For 429 see test_pace.py."""
    with_retry_after = httpx.Response(status, headers={"Retry-After": "7"})
    gateway = Gateway(with_retry_after, httpx.Response(status), httpx.Response(202, json=TASK))
    submit(gateway.client())
    assert 7 <= gateway.pauses[0] <= 8.75
    assert 0.25 <= gateway.pauses[1] <= 0.75


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (302, asg_gateway.APIError),
        (400, asg_gateway.InvalidRequestError),
        (401, asg_gateway.AuthenticationError),
        (403, asg_gateway.QuotaExhaustedError),
        (404, asg_gateway.NotFoundError),
        (405, asg_gateway.InvalidRequestError),
        (413, asg_gateway.InvalidRequestError),
        (415, asg_gateway.InvalidRequestError),
        (418, asg_gateway.APIError),
        (422, asg_gateway.InvalidRequestError),
        (501, asg_gateway.ServerError),
        (505, asg_gateway.ServerError),
    ],
)
def test_permanent_status_raises_error_with_details_of_the_answer(
    status: int, error: type[asg_gateway.APIError]
) -> None:
    """There is no retry."""
    fields = [{"field": "a", "error": "a is wrong"}, {"field": "b", "error": "b is wrong"}]
    body = {"error": "a is wrong", "errors": fields}
    gateway = Gateway(httpx.Response(status, json=body, headers={"X-Request-Id": "r1", "Allow": "POST"}))
    with pytest.raises(error) as caught:
        submit(gateway.client())
    assert type(caught.value) is error
    assert (caught.value.status, caught.value.message) == (status, "a is wrong")
    assert str(caught.value) == f"{status}: a is wrong"
    assert caught.value.errors == (("a", "a is wrong"), ("b", "b is wrong"))
    assert (caught.value.request_id, caught.value.headers["allow"]) == ("r1", "POST")
    assert gateway.pauses == []


def test_403_of_a_disabled_customer_raises_customer_disabled_error() -> None:
    """The sentence is the shim's own."""
    refused = problems.customer_disabled()
    with pytest.raises(asg_gateway.CustomerDisabledError, match=refused.message):
        submit(Gateway(httpx.Response(refused.status, content=refused.body())).client())


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (408, asg_gateway.APIError),
        (409, asg_gateway.ConflictError),
        (429, asg_gateway.RateLimitedError),
        (503, asg_gateway.ServerError),
    ],
)
def test_last_error_is_raised_after_max_retries(status: int, error: type[asg_gateway.APIError]) -> None:
    earlier = [httpx.Response(status, json={"error": "earlier"})] * 2
    gateway = Gateway(*earlier, httpx.Response(status, json={"error": "last"}))
    with pytest.raises(error, match=f"{status}: last"):
        submit(gateway.client(max_retries=2))
    assert len(gateway.requests) == 3


def test_error_is_raised_at_once_if_retry_after_exceeds_deadline() -> None:
    gateway = Gateway(httpx.Response(503, headers={"Retry-After": "60"}))
    with pytest.raises(asg_gateway.ServerError):
        submit(gateway.client(deadline=10))
    assert gateway.pauses == []


def test_pauses_double_up_to_8_seconds_with_jitter() -> None:
    attempts = Attempts(Limits(30, 20, 10_000), URL, Clock())
    pauses = [attempts.answered(httpx.Response(503)) or 0.0 for _ in range(20)]
    for pause, middle in zip(pauses, [0.25, 0.5, 1, 2, 4] + [8] * 15, strict=True):
        assert middle * 0.5 <= pause <= middle * 1.5
    assert len(set(pauses)) == 20


def test_timeout_of_an_attempt_is_limited_by_remaining_time_but_positive() -> None:
    clock = Clock()
    attempts = Attempts(Limits(30, 5, 100), URL, clock)
    assert attempts.timeout().read == 30
    clock.now += 90
    assert attempts.timeout().read == attempts.timeout().connect == attempts.remaining() == 10
    clock.now += 20
    assert 0 < (attempts.timeout().read or 0.0) < 1
    with pytest.raises(asg_gateway.ServerError):
        attempts.answered(httpx.Response(503))


@pytest.mark.parametrize(("ahead", "least", "most"), [(20, 17, 25), (-20, 0, 0.375)])
def test_retry_after_can_be_a_date(ahead: int, least: float, most: float) -> None:
    """For a date in the past, the pause is that of the backoff."""
    answer = httpx.Response(503, headers={"Retry-After": formatdate(time.time() + ahead, usegmt=True)})
    assert least <= (Attempts(Limits(30, 5, 100), URL).answered(answer) or 0.0) <= most


@given(
    st.text(st.characters(codec="latin-1"))
    | st.from_regex(r"\A[0-9]+\Z")
    | st.from_regex(r"\AMon, [0-9]+ Jan [0-9]+ [0-9]+:[0-9]+:[0-9]+ (GMT|[+-][0-9]+)\Z")
)
@example("Mon, 01 Jan 99999999999999999999 00:00:00 GMT")
@example("Mon, 01 Jan 0001 00:00:00 -0000")
@example("9" * 400)
def test_any_retry_after_gives_a_pause_or_the_error_of_the_answer(value: str) -> None:
    answer = httpx.Response(503, headers=[(b"Retry-After", value.encode("latin-1"))])
    try:
        pause = Attempts(Limits(30, 5, 100), URL).answered(answer)
    except asg_gateway.ServerError:
        return  # the pause would exceed the deadline
    assert pause is not None
    assert 0 < pause < 100


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, text="<html>Sign in to the network</html>"),
        httpx.Response(200, json=[]),
        httpx.Response(204),
        httpx.Response(200, json={"batch_id": "bat_1"}),
    ],
)
def test_2xx_that_is_not_from_the_gateway_is_an_error(answer: httpx.Response) -> None:
    """A proxy that answers 200 has accepted nothing."""
    with pytest.raises(asg_gateway.APIError, match="not from the gateway") as caught:
        submit(Gateway(answer).client())
    assert caught.value.idempotency_key


def test_error_of_a_proxy_shows_its_status_and_not_its_html() -> None:
    with pytest.raises(asg_gateway.APIError, match="403: Forbidden") as caught:
        submit(Gateway(httpx.Response(403, text="<html>")).client())
    assert "<html>" not in str(caught.value)


def test_missing_answer_is_a_transport_error_with_cause_and_without_api_key() -> None:
    client = Gateway(httpx.ConnectError("refused")).client(max_retries=0)
    with pytest.raises(asg_gateway.TransportError, match="refused") as caught:
        submit(client)
    assert isinstance(caught.value.__cause__, httpx.ConnectError)
    assert "secret-key" not in repr(client) + repr(caught.value) + str(vars(caught.value))


def test_answer_that_cannot_be_decoded_is_a_transport_error() -> None:
    """The caller receives an error of the SDK, not one of httpx."""

    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(202, headers={"Content-Encoding": "gzip"}, content=b"not gzip")

    transport = httpx.MockTransport(answer)
    client = asg_gateway.ASGGatewayClient("k", transport=transport, max_retries=0)
    with client, pytest.raises(asg_gateway.TransportError):
        submit(client)


def test_failed_submission_can_be_repeated_with_the_key_in_its_error() -> None:
    """The answer was lost, so a repeat with a new key could create a second task. The error of a lookup has no key."""
    gateway = Gateway(httpx.ReadTimeout("slow"), httpx.Response(200, json=TASK), httpx.Response(503))
    client = gateway.client(max_retries=0)
    with pytest.raises(asg_gateway.TimedOutError) as caught:
        submit(client)
    submit(client, idempotency_key=caught.value.idempotency_key)
    assert gateway.bodies[0] == gateway.bodies[1]
    with pytest.raises(asg_gateway.ServerError) as caught_lookup:
        client.get_task("tsk_1")
    assert caught_lookup.value.idempotency_key is None


async def test_asynchronous_client_submits_retries_looks_up_and_raises_like_the_blocking_one() -> None:
    answers = [httpx.Response(503), httpx.Response(202, json=TASK), batch(1), httpx.Response(200, json=TASK), batch(1)]
    gateway = Gateway(*answers, batch(1000), httpx.ReadTimeout("slow"))
    async with gateway.async_client() as client:
        assert (await client.submit_task(**CALL))["task_id"] == "tsk_1"
        assert len(gateway.pauses) == 1
        assert (await client.submit_batch([{}])).batch_id == "bat_1"
        assert (await client.get_task("tsk_1")).task_id == "tsk_1"
        assert (await client.get_batch("bat_1")).task_ids == ("tsk_1_0",)
    assert [request.url.path for request in gateway.requests][-2:] == ["/v1/tasks/tsk_1", "/v1/tasks/batch/bat_1"]
    async with gateway.async_client(max_retries=0) as client:
        with pytest.raises(asg_gateway.PartialBatchError) as caught:
            await client.submit_batch([{}] * 1500, idempotency_key="k")
    assert isinstance(caught.value.__cause__, asg_gateway.TimedOutError)
    assert "secret-key" not in repr(client)
