"""Names that occur twice in one JSON object are refused."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.domain.errors import InvalidSubmission, Reason
from ingest.domain.submissions import decode_json

# Strings that look like the end of a name are included.
_names = st.sampled_from(["a", "b", '":', '\\":', ":", "", "\\", "é", '"'])
# An object is a tuple of (name, value), so that a name can occur twice.
_values = st.recursive(
    st.one_of(st.integers(), st.booleans(), st.none(), _names),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.lists(st.tuples(_names, inner), max_size=4).map(tuple)),
    max_leaves=12,
)


def _to_json(value: object, space: str) -> str:
    if isinstance(value, tuple):
        return "{" + ",".join(f"{json.dumps(name)}{space}:{_to_json(member, space)}" for name, member in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(_to_json(element, space) for element in value) + "]"
    return json.dumps(value)


def _has_repeated_name(value: object) -> bool:
    if isinstance(value, tuple):
        names = [name for name, _ in value]
        return len(set(names)) < len(names) or any(_has_repeated_name(member) for _, member in value)
    return isinstance(value, list) and any(_has_repeated_name(element) for element in value)


@given(_values, st.sampled_from(["", " ", "\r\n\t"]))
def test_document_is_refused_exactly_if_a_name_is_repeated(value: Any, space: str) -> None:
    body = _to_json(value, space).encode()
    if _has_repeated_name(value):
        with pytest.raises(InvalidSubmission, match="twice in one object") as caught:
            decode_json(body)
        assert caught.value.reason is Reason.MALFORMED
    else:
        assert decode_json(body) == json.loads(body)


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b'{"idempotency_key":"a","idempotency_key":"b"}', "idempotency_key"),
        (b'{"label_spec":{"x":1,"x" :1}}', "x"),
        (b'{"a":1,"\\u0061":2}', "a"),
        (b'[{"a":":", "a":""}]', "a"),
        (b'{"n":' + b"9" * 300 + b',"a":"\\":","a":1}', "a"),
    ],
)
def test_error_contains_the_repeated_name(body: bytes, name: str) -> None:
    """This includes a name that is written with an escape."""
    with pytest.raises(InvalidSubmission, match=f"the name '{name}' twice"):
        decode_json(body)
