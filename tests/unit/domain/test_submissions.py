"""What is a task, what is not, and how a mistake is said."""

import contextlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.domain.errors import InvalidSubmission
from ingest.domain.submissions import batch_submission, decode_json, task_submission

GOOD: dict[str, Any] = {
    "type": "moderation",
    "data_url": "https://cdn.example.com/x",
    "label_spec": {"question": "q?", "options": ["a", "b"]},
}
HOOKS = frozenset({"https://example.com/h"})


def first_error(data: object, **options: Any) -> str:
    with pytest.raises(InvalidSubmission) as caught:
        task_submission(data, "c", HOOKS, **options)
    return caught.value.message


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in GOOD.items() if key != name}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (without("type"), "type is required"),
        (without("data_url"), "data_url is required"),
        (without("label_spec"), "label_spec is required"),
        (GOOD | {"label_spec": {"options": ["a", "b"]}}, "label_spec.question is required"),
        (GOOD | {"label_spec": {"question": "q"}}, "label_spec.options is required"),
        (GOOD | {"label_spec": {"question": "", "options": ["a", "b"]}}, "label_spec.question must not be empty"),
        (GOOD | {"label_spec": {"question": "q", "options": ["a"]}}, "label_spec.options must have at least 2 entries"),
        (
            GOOD | {"label_spec": {"question": "q", "options": ["a", "a"]}},
            "label_spec.options must have at least 2 distinct entries",
        ),
        (GOOD | {"data_url": "http://a.example"}, "data_url must be an https URL"),
        (GOOD | {"data_url": "https://user:pw@a.example/"}, "data_url must be an https URL"),
        (GOOD | {"data_url": "https://"}, "data_url must be an https URL"),
        (GOOD | {"callback_url": "https://evil.example"}, "callback_url is not one of your registered webhook URLs"),
        (GOOD | {"colour": "red"}, "colour is not a known field"),
        (GOOD | {"idempotency_key": ""}, "idempotency_key must be 1 to 255 printable characters"),
        (GOOD | {"idempotency_key": "x" * 256}, "idempotency_key must be 1 to 255 printable characters"),
        (GOOD | {"idempotency_key": "a\nb"}, "idempotency_key must be 1 to 255 printable characters"),
    ],
)
def test_first_errors_read_like_the_contract(data: object, message: str) -> None:
    """A sentence that starts with the field."""
    assert first_error(data) == message


@pytest.mark.parametrize("value", ["3", True, 1, 11, 2.5, 1e300, None])
def test_thresholds_are_strict_integers(value: object) -> None:
    """No strings, no booleans, 2 to 10."""
    assert first_error(GOOD | {"consensus_threshold": value}).startswith("consensus_threshold ")


def test_a_threshold_may_be_written_with_a_fraction_of_nothing() -> None:
    """3.0 is 3, as in JSON Schema: the same body, the same fingerprint."""
    spelled, plain = (task_submission(GOOD | {"consensus_threshold": value}, "c", HOOKS, "k") for value in (3.0, 3))
    assert (spelled.fingerprint, bytes(spelled.tasks[0].body)) == (plain.fingerprint, bytes(plain.tasks[0].body))


@pytest.mark.parametrize("data", [None, [], "x", 3, True])
def test_a_body_is_an_object(data: object) -> None:
    """Anything else is said to be none."""
    assert first_error(data).startswith("body ")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "body is empty"),
        (b"{", "body is not JSON"),
        (b"\xff", "body is not UTF-8"),
        (b"NaN", "body is not JSON"),
        (b"[" * 100_000, "body is nested too deeply"),
        (b'{"a": "\\ud800"}', "body is not JSON"),
    ],
)
def test_what_is_no_json(body: bytes, message: str) -> None:
    """Told apart, without a crash."""
    with pytest.raises(InvalidSubmission, match=message):
        decode_json(body)


def test_all_errors_of_a_batch_are_listed_with_their_place() -> None:
    """At most 100 of them."""
    items = [GOOD, without("type"), GOOD | {"data_url": "ftp://x"}]
    with pytest.raises(InvalidSubmission) as caught:
        batch_submission({"tasks": items}, "c", HOOKS)
    assert [each.error for each in caught.value.errors] == [
        "tasks[1].type is required",
        "tasks[2].data_url must be an https URL",
    ]
    with pytest.raises(InvalidSubmission) as caught:
        batch_submission({"tasks": [{}] * 1000}, "c", HOOKS)
    assert len(caught.value.errors) == 100


@pytest.mark.parametrize(("count", "ok"), [(0, False), (1, True), (1000, True), (1001, False)])
def test_batch_sizes(count: int, ok: bool) -> None:
    """1 to 1,000 tasks."""
    if ok:
        assert len(batch_submission({"tasks": [GOOD] * count}, "c", HOOKS).tasks) == count
    else:
        with pytest.raises(InvalidSubmission, match="tasks must have at"):
            batch_submission({"tasks": [GOOD] * count}, "c", HOOKS)


def test_the_shared_callback_is_for_items_without_one() -> None:
    """An item's own wins."""
    hooks = frozenset({"https://a.example/1", "https://a.example/2"})
    own = GOOD | {"callback_url": "https://a.example/2"}
    made = batch_submission({"tasks": [GOOD, own], "callback_url": "https://a.example/1"}, "c", hooks)
    urls = [msgspec.json.decode(each.body)["callback_url"] for each in made.tasks]
    assert urls == ["https://a.example/1", "https://a.example/2"]


def test_further_label_spec_keys_pass_through() -> None:
    """They are in the canonical body."""
    spec = GOOD["label_spec"] | {"hint": {"x": [1, None]}}
    made = task_submission(GOOD | {"label_spec": spec}, "c", HOOKS)
    assert msgspec.json.decode(made.tasks[0].body)["label_spec"] == spec


def test_options_may_repeat_where_two_are_distinct() -> None:
    """They are taken, and passed on as they are."""
    spec = {"question": "q", "options": ["a", "b", "a"]}
    made = task_submission(GOOD | {"label_spec": spec}, "c", HOOKS)
    assert msgspec.json.decode(made.tasks[0].body)["label_spec"] == spec


@given(st.permutations(list(GOOD)), st.booleans())
def test_the_fingerprint_is_of_the_meaning(order: list[str], spelled: bool) -> None:
    """Law: order of keys, defaults spelled out and the key itself do not change it."""
    data = {name: GOOD[name] for name in order} | ({"consensus_threshold": 3} if spelled else {})
    expected = task_submission(GOOD, "c", HOOKS, "k")
    made = task_submission(data | {"idempotency_key": "k"}, "c", HOOKS)
    assert (made.fingerprint, made.id) == (expected.fingerprint, expected.id)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=10,
)


@given(json_values)
def test_no_json_crashes_validation(data: object) -> None:
    """Law: any JSON is a submission or an InvalidSubmission."""
    for make in (task_submission, batch_submission):
        with contextlib.suppress(InvalidSubmission):
            make(data, "c", HOOKS)
