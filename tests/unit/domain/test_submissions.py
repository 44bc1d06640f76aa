"""Validation of submissions: which are valid, and how errors are worded."""

import contextlib
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.domain.errors import InvalidSubmission, Reason
from ingest.domain.submissions import MAX_BODY, MAX_TASK, batch_submission, decode_json, task_submission

VALID: dict[str, Any] = {
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
    return {key: value for key, value in VALID.items() if key != name}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (without("type"), "type is required"),
        (without("data_url"), "data_url is required"),
        (without("label_spec"), "label_spec is required"),
        (VALID | {"label_spec": {"options": ["a", "b"]}}, "label_spec.question is required"),
        (VALID | {"label_spec": {"question": "q"}}, "label_spec.options is required"),
        (VALID | {"label_spec": {"question": "", "options": ["a", "b"]}}, "label_spec.question must not be empty"),
        (
            VALID | {"label_spec": {"question": "q", "options": ["a"]}},
            "label_spec.options must have at least 2 entries",
        ),
        (
            VALID | {"label_spec": {"question": "q", "options": ["a", "a"]}},
            "label_spec.options must have at least 2 distinct entries",
        ),
        (VALID | {"data_url": "http://a.example"}, "data_url must be an https URL"),
        (VALID | {"data_url": "https://user:pw@a.example/"}, "data_url must not contain credentials"),
        (VALID | {"data_url": "https://"}, "data_url must have a host"),
        (VALID | {"data_url": "https://a.example/" + "x" * 2048}, "data_url must be at most 2048 characters"),
        (VALID | {"callback_url": "https://evil.example"}, "callback_url is not one of your registered webhook URLs"),
        (VALID | {"callback_url": "https://example.com/h "}, "callback_url must not contain spaces, write %20"),
        (VALID | {"colour": "red"}, "colour is not a known field"),
        (VALID | {"idempotency_key": ""}, "idempotency_key must be 1 to 255 printable characters"),
        (VALID | {"idempotency_key": "x" * 256}, "idempotency_key must be 1 to 255 printable characters"),
        (VALID | {"idempotency_key": "a\nb"}, "idempotency_key must be 1 to 255 printable characters"),
    ],
)
def test_error_of_invalid_task_starts_with_the_field(data: object, message: str) -> None:
    assert first_error(data) == message


@pytest.mark.parametrize("value", ["3", True, 1, 11, 2.5, 1e300, None])
def test_consensus_threshold_must_be_an_integer_from_2_to_10(value: object) -> None:
    assert first_error(VALID | {"consensus_threshold": value}).startswith("consensus_threshold ")


def test_threshold_of_3_point_0_equals_3() -> None:
    """JSON Schema has the same rule. The canonical body and the fingerprint are the same."""
    decimal, integer = (task_submission(VALID | {"consensus_threshold": value}, "c", HOOKS, "k") for value in (3.0, 3))
    assert decimal.fingerprint == integer.fingerprint
    assert bytes(decimal.tasks[0].body) == bytes(integer.tasks[0].body)


@pytest.mark.parametrize("data", [None, [], "x", 3, True])
def test_body_must_be_an_object(data: object) -> None:
    assert first_error(data).startswith("body ")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "body is empty"),
        (b"{", "body is not JSON"),
        (b"\xff", "body is not UTF-8"),
        (b"NaN", "body is not JSON"),
        (b"[" * 100_000, "body is nested too deeply: at most 64 levels"),
        (b"[" * 65 + b"]" * 65, "body is nested too deeply: at most 64 levels"),
        (b'[{"a":' * 32 + b"[" + b"]" + b"}]" * 32, "body is nested too deeply: at most 64 levels"),
        (b'["[", ' * 65, "body is nested too deeply: at most 64 levels"),
        (b"[" * 64 + b'"' + b"[" * 10, "body is not JSON"),
        (b"]" + b"[" * 100, "body is not JSON"),
        (b'{"a": "\\ud800"}', "body is not JSON"),
    ],
)
def test_error_says_why_body_is_not_json(body: bytes, message: str) -> None:
    with pytest.raises(InvalidSubmission, match=message):
        decode_json(body)


def test_all_errors_of_a_batch_are_listed_with_their_index() -> None:
    items = [VALID, without("type"), VALID | {"data_url": "ftp://x"}]
    with pytest.raises(InvalidSubmission) as caught:
        batch_submission({"tasks": items}, "c", HOOKS)
    assert [error.error for error in caught.value.errors] == [
        "tasks[1].type is required",
        "tasks[2].data_url must be an https URL",
    ]


def test_at_most_100_errors_of_a_batch_are_listed() -> None:
    with pytest.raises(InvalidSubmission) as caught:
        batch_submission({"tasks": [{}] * 1000}, "c", HOOKS)
    assert len(caught.value.errors) == 100


@pytest.mark.parametrize("count", [1, 1000])
def test_batch_of_1_to_1000_tasks_is_valid(count: int) -> None:
    assert len(batch_submission({"tasks": [VALID] * count}, "c", HOOKS).tasks) == count


@pytest.mark.parametrize("count", [0, 1001])
def test_batch_without_tasks_or_with_more_than_1000_is_invalid(count: int) -> None:
    with pytest.raises(InvalidSubmission, match="tasks must have at"):
        batch_submission({"tasks": [VALID] * count}, "c", HOOKS)


def test_callback_url_of_batch_applies_to_items_without_their_own() -> None:
    hooks = frozenset({"https://a.example/1", "https://a.example/2"})
    own = VALID | {"callback_url": "https://a.example/2"}
    submission = batch_submission({"tasks": [VALID, own], "callback_url": "https://a.example/1"}, "c", hooks)
    urls = [msgspec.json.decode(task.body)["callback_url"] for task in submission.tasks]
    assert urls == ["https://a.example/1", "https://a.example/2"]


def test_canonical_body_keeps_unknown_label_spec_keys() -> None:
    spec = VALID["label_spec"] | {"hint": {"x": [1, None]}}
    submission = task_submission(VALID | {"label_spec": spec}, "c", HOOKS)
    assert msgspec.json.decode(submission.tasks[0].body)["label_spec"] == spec


def test_repeated_options_are_valid_and_kept_if_two_are_distinct() -> None:
    spec = {"question": "q", "options": ["a", "b", "a"]}
    submission = task_submission(VALID | {"label_spec": spec}, "c", HOOKS)
    assert msgspec.json.decode(submission.tasks[0].body)["label_spec"] == spec


@given(st.permutations(list(VALID)), st.booleans())
def test_fingerprint_ignores_name_order_defaults_and_place_of_the_key(order: list[str], write_default: bool) -> None:
    """Property: the idempotency key can be in the body or in the header, and a default can be written out."""
    data = {name: VALID[name] for name in order} | ({"consensus_threshold": 3} if write_default else {})
    expected = task_submission(VALID, "c", HOOKS, "k")
    submission = task_submission(data | {"idempotency_key": "k"}, "c", HOOKS)
    assert (submission.fingerprint, submission.id) == (expected.fingerprint, expected.id)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=10,
)


@given(json_values)
def test_validation_of_any_json_raises_only_invalid_submission(data: object) -> None:
    for make in (task_submission, batch_submission):
        with contextlib.suppress(InvalidSubmission):
            make(data, "c", HOOKS)


def numbers(count: int) -> dict[str, Any]:
    """A task with `count` numbers, each of which has 4 bytes in a body and 18 in canonical JSON."""
    return {
        "type": "sentiment",
        "data_url": "https://a.example/x",
        "label_spec": {"question": "q?", "options": ["a", "b"], "x": [1e15] * count},
    }


def test_task_is_too_large_if_its_canonical_json_is() -> None:
    """Its body may be much smaller: `1e15` becomes `1000000000000000.0`."""
    task_submission(numbers(MAX_TASK // 20), "c", frozenset())
    with pytest.raises(InvalidSubmission, match=r"the task has .* bytes as canonical JSON") as error:
        task_submission(numbers(MAX_TASK // 18), "c", frozenset())
    assert error.value.reason is Reason.TOO_LARGE


def test_batch_is_too_large_if_one_of_its_tasks_or_all_together_are() -> None:
    with pytest.raises(InvalidSubmission, match=r"tasks\[1\] has .* bytes as canonical JSON") as error:
        batch_submission({"tasks": [numbers(1), numbers(MAX_TASK // 18)]}, "c", frozenset())
    assert error.value.reason is Reason.TOO_LARGE
    large = numbers(MAX_TASK // 20)
    with pytest.raises(InvalidSubmission, match=r"the tasks have .* bytes as canonical JSON"):
        batch_submission({"tasks": [large] * (MAX_BODY // MAX_TASK + 4)}, "c", frozenset())


def test_number_out_of_range_is_refused() -> None:
    """Infinity has no JSON."""
    with pytest.raises(InvalidSubmission, match="1e400 is out of range"):
        decode_json(b'{"x":1e400}')


def test_subnormal_numbers_are_decoded_quickly() -> None:
    """They took 5 µs each. The limit is generous, because machines are slow at times."""
    body = b"[" + b",".join([b"5e-324"] * 100_000) + b"]"
    began = time.process_time()
    assert decode_json(body)[0] == 5e-324
    assert time.process_time() - began < 0.25
