"""The messages of a producer: properties, keys, and bodies that the service accepts with the ids that the SDK names."""

import contextlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from types import MappingProxyType
from typing import Any

import pytest
from asg_gateway import InvalidTaskError
from asg_gateway._tasks import part_key
from asg_gateway.amqp._producing.keys import checked_key, size_of
from asg_gateway.amqp._producing.messages import Composer, Origin
from asg_gateway.amqp._producing.urls import PATTERN
from hypothesis import given
from hypothesis import strategies as st

from ingest.domain.errors import InvalidSubmission
from ingest.domain.submissions import MAX_TASK, Submission, batch_submission, decode_json, task_submission
from ingest.domain.urls import URL_PATTERN
from ingest.domain.validation import validate_key
from tests.unit.sdk.bulk.gateway import task

COMPOSER = Composer("acme", "acme", lambda: 1_775_736_005.9)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**40), 10**40)
VALUES = st.recursive(st.none() | st.booleans() | NUMBERS | st.text(), lambda inner: st.lists(inner, max_size=3))


def service_task(body: bytes, key: str) -> Submission:
    """Read a message of a task as the service does. Raises InvalidSubmission."""
    return task_submission(decode_json(body), "acme", None, key)


def service_accepts_key(key: str) -> bool:
    try:
        validate_key(key, "message_id")
        key.encode()
    except (InvalidSubmission, UnicodeEncodeError):
        return False
    return True


def is_key(key: str) -> bool:
    try:
        checked_key(key)
    except ValueError:
        return False
    return True


def test_properties_are_those_that_the_service_wants() -> None:
    message, submitted = COMPOSER.task(task("a"), "k", Origin(None, "00-1-2-01", "a=b"))
    properties = message.properties
    assert message.routing_key == "task.submitted.acme"
    assert (properties.message_id, properties.user_id, properties.content_type) == ("k", "acme", "application/json")
    assert (properties.delivery_mode, properties.priority) == (2, 4)
    assert properties.headers == {"traceparent": "00-1-2-01", "tracestate": "a=b"}
    assert properties.timestamp == datetime.fromtimestamp(1_775_736_005, UTC)
    assert service_task(message.body, "k").id == submitted.task_id


def test_user_is_named_only_if_it_is_the_customer() -> None:
    """RabbitMQ closes the channel for any other `user_id`."""
    message, _ = Composer("acme", "guest").task(task("a"), "k")
    assert message.properties.user_id is None


@pytest.mark.parametrize("cust_id", ["", "a.b", "a b", "#", "x" * 65])
def test_wrong_customer_is_a_value_error(cust_id: str) -> None:
    with pytest.raises(ValueError, match="cust_id must be"):
        Composer(cust_id, "acme")


@pytest.mark.parametrize(
    "created_at",
    [
        1_775_736_005,
        datetime(2026, 4, 9, 12, 0, 5, tzinfo=UTC),
        datetime(2026, 4, 9, 14, 0, 5, 900_000, timezone(timedelta(hours=2))),
    ],
)
def test_created_at_is_the_timestamp(created_at: datetime | int) -> None:
    message, _ = COMPOSER.task(task("a"), "k", Origin(created_at))
    assert message.properties.timestamp is not None
    assert int(message.properties.timestamp.timestamp()) == 1_775_736_005


@pytest.mark.parametrize(
    ("created_at", "problem"),
    [
        (datetime(2026, 4, 9), "no time zone"),  # noqa: DTZ001 - that is the error
        (1.5, "must be a datetime with a time zone, or an int"),
        (True, "must be a datetime with a time zone, or an int"),
        ("2026-04-09", "must be a datetime with a time zone, or an int"),
        (-1, "whole Unix seconds, not milliseconds"),
        (1_775_736_005_000_000, "whole Unix seconds, not milliseconds"),
    ],
)
def test_invalid_created_at_is_refused(created_at: Any, problem: str) -> None:
    with pytest.raises((ValueError, TypeError), match=problem):
        Origin(created_at)


@pytest.mark.parametrize("trace", [{"traceparent": "ü"}, {"traceparent": "x" * 600}, {"tracestate": 1}])
def test_invalid_trace_context_is_refused(trace: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"trace.* must be at most 512 ASCII characters"):
        Origin(**trace)


def test_every_character_is_allowed_in_keys_if_the_service_allows_it() -> None:
    for code in [*range(0x1_0000), 0x1_0000, 0x1F600, 0x10_FFFF]:
        assert is_key(chr(code)) == service_accepts_key(chr(code)), hex(code)


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        ("", "key has 0 characters"),
        ("k" * 256, "key has 256 characters"),
        ("ü" * 128, "key has 256 bytes in UTF-8, at most 255"),
        ("a\nb", r"not U\+000A"),
        ("\ud800", r"not U\+D800"),
        (7, "key must be a string, not int"),
    ],
)
def test_invalid_key_is_refused(key: Any, problem: str) -> None:
    for submit in (lambda: COMPOSER.task(task("a"), key), lambda: COMPOSER.batch([task("a")], key)):
        with pytest.raises((ValueError, TypeError), match=problem):
            submit()


def test_key_of_the_task_must_be_the_argument() -> None:
    COMPOSER.task(task("a", idempotency_key="k"), "k")
    with pytest.raises(ValueError, match="another idempotency_key"):
        COMPOSER.task(task("a", idempotency_key="other"), "k")


@pytest.mark.parametrize("key", ["k", "k" * 255, "ü" * 127])
def test_keys_of_parts_fit_into_a_message(key: str) -> None:
    keys = {part_key(key, index, size_of) for index in range(12)}
    assert len(keys) == 12
    assert all(is_key(each) for each in keys)


def test_all_faults_are_listed_with_the_index_in_the_whole_batch() -> None:
    tasks = [task("a")] * 1500
    tasks[1200] = task("b", type="mood", extra=1)
    tasks[1300] = "not a task"  # type: ignore[call-overload]
    with pytest.raises(InvalidTaskError) as caught:
        COMPOSER.batch(tasks, "k")
    assert [field for field, _ in caught.value.errors] == ["tasks[1200].extra", "tasks[1200].type", "tasks[1300]"]
    assert caught.value.errors[2] == ("tasks[1300]", "tasks[1300] must be a JSON object")
    assert str(caught.value) == "tasks[1200].extra is not a known field (and 2 more errors)"
    assert caught.value.idempotency_key == "k"


def test_rule_for_urls_is_that_of_the_service() -> None:
    assert PATTERN == URL_PATTERN


@pytest.mark.parametrize(
    "url", ["https://a.example/a b", "https://u:p@a.example/", "https://a.example/\n", "https://\u00fc.example"]
)
def test_wrong_url_is_found_before_its_batch_is_published(url: str) -> None:
    """The service rejects a batch as a whole."""
    for name in ("data_url", "callback_url"):
        with pytest.raises(InvalidTaskError) as caught:
            COMPOSER.batch([task("a"), task("b", **{name: url})], "k")
        assert [field for field, _ in caught.value.errors] == [f"tasks[1].{name}"]
        with pytest.raises(InvalidSubmission):
            service_task(json.dumps(task("a", **{name: url})).encode(), "k")
    with pytest.raises(InvalidTaskError, match="callback_url must be an https URL"):
        COMPOSER.batch([task("a")], "k", url)


def test_empty_batch_is_refused() -> None:
    with pytest.raises(InvalidTaskError, match="at least 1 task"):
        COMPOSER.batch([], "k")


def test_task_that_contains_itself_is_a_value_error() -> None:
    circular = task("a")
    circular["label_spec"]["more"] = circular
    with pytest.raises(ValueError, match=r"[Cc]ircular|contains itself"):
        COMPOSER.task(circular, "k")


def test_large_batch_is_split_into_parts_that_the_service_accepts() -> None:
    """Near 8 MiB, defaults and the webhook of the batch count for each task."""
    tasks = [task(f"{number}", idempotency_key=f"own{number}") if number % 3 else task("x") for number in range(2000)]
    for each in tasks:
        each["label_spec"]["note"] = "x" * 8_200
    messages, submitted = COMPOSER.batch(tasks, "k", f"https://a.example/{'h' * 200}")
    assert [message.key for message in messages] == ["k/0", "k/1", "k/2"]
    read = [batch_submission(decode_json(message.body), "acme", None, message.key) for message in messages]
    assert submitted.batch_ids == tuple(batch.id for batch in read)
    assert submitted.task_ids == tuple(item.task_id for batch in read for item in batch.tasks)
    assert submitted.batch_id == ",".join(submitted.batch_ids)
    assert [part.key for part in submitted.parts] == ["k/0", "k/1", "k/2"]
    assert tuple(one for part in submitted.parts for one in part.task_ids) == submitted.task_ids


@pytest.mark.parametrize("more", [{}, {"consensus_threshold": 3.0}, {"idempotency_key": "k" * 200}])
@pytest.mark.parametrize("callback_url", [None, "https://a.example/hook"])
def test_task_is_too_large_exactly_if_the_service_says_so(more: dict[str, Any], callback_url: str | None) -> None:
    answers = set()
    for length in range(MAX_TASK - 420, MAX_TASK + 20):
        candidate = task("a", **more)
        candidate["label_spec"]["note"] = "ü" * (length // 2) + "x" * (length % 2)
        body = {"tasks": [candidate]} | ({"callback_url": callback_url} if callback_url else {})
        answers.add((_service_accepts(body), _sdk_accepts(candidate, callback_url)))
    assert answers >= {(True, True), (False, False)}
    # 3.0 is shorter for the service, so that the SDK leaves those few bytes to it.
    assert (True, False) not in answers
    assert (False, True) not in answers or "consensus_threshold" in more


def _service_accepts(body: object) -> bool:
    try:
        batch_submission(decode_json(json.dumps(body).encode()), "acme", None, "b")
    except InvalidSubmission:
        return False
    return True


def _sdk_accepts(candidate: Mapping[str, Any], callback_url: str | None) -> bool:
    try:
        COMPOSER.batch([candidate], "b", callback_url)
    except InvalidTaskError:
        return False
    return True


@given(st.lists(NUMBERS, min_size=1, max_size=60), st.integers(0, 400))
def test_numbers_never_make_the_sdk_refuse_what_the_service_accepts(numbers: list[float], fill: int) -> None:
    """The service writes some numbers shorter than Python does."""
    candidate = task("a")
    candidate["label_spec"] |= {"numbers": numbers, "note": ""}
    length = len(json.dumps(candidate, separators=(",", ":")))
    candidate["label_spec"]["note"] = "x" * (MAX_TASK - length + 100 - fill)
    if _service_accepts({"tasks": [candidate]}):
        assert _sdk_accepts(candidate, None)


@given(
    st.fixed_dictionaries(
        {
            "type": st.sampled_from(["sentiment", "moderation", "mood"]),
            "data_url": st.sampled_from(["https://a.example/", "HTTPS://a.example", "http://a.example", "https://ü"]),
            "label_spec": st.fixed_dictionaries(
                {"question": st.text(), "options": st.lists(st.text(), max_size=3).map(tuple)},
                optional={"more": VALUES},
            ).map(MappingProxyType),
        },
        optional={
            "consensus_threshold": VALUES | st.sampled_from([2, 3.0, 10, 11]),
            "callback_url": VALUES | st.just("https://a.example/"),
            "idempotency_key": st.just("k"),
            "more": VALUES,
        },
    )
)
def test_checks_never_refuse_what_the_service_accepts(candidate: dict[str, Any]) -> None:
    try:
        message, submitted = COMPOSER.task(candidate, "k")
    except InvalidTaskError:
        plain = {**candidate, "label_spec": dict(candidate["label_spec"])}
        with pytest.raises(InvalidSubmission):
            service_task(json.dumps(plain).encode(), "k")
    else:
        with contextlib.suppress(InvalidSubmission):  # only the service knows all rules
            assert service_task(message.body, "k").id == submitted.task_id
