"""Names that stand twice in one object."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.domain.errors import InvalidSubmission, Reason
from ingest.domain.submissions import decode_json

_names = st.sampled_from(["a", "b", '":', '\\":', ":", "", "\\", "é", '"'])
_values = st.recursive(
    st.one_of(st.integers(), st.booleans(), st.none(), _names),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.lists(st.tuples(_names, inner), max_size=4).map(tuple)),
    max_leaves=12,
)


def _written(value: object, space: str) -> str:
    """JSON of a value in which tuples are the members of objects, repeated names and all."""
    if isinstance(value, tuple):
        return "{" + ",".join(f"{json.dumps(n)}{space}:{_written(v, space)}" for n, v in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(_written(each, space) for each in value) + "]"
    return json.dumps(value)


def _repeats(value: object) -> bool:
    if isinstance(value, tuple):
        names = [name for name, _ in value]
        return len(set(names)) < len(names) or any(_repeats(each) for _, each in value)
    return isinstance(value, list) and any(_repeats(each) for each in value)


@given(_values, st.sampled_from(["", " ", "\r\n\t"]))
def test_a_document_is_refused_exactly_when_a_name_is_repeated(value: Any, space: str) -> None:
    """Whatever the names and strings hold that looks like the end of a name."""
    body = _written(value, space).encode()
    if _repeats(value):
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
def test_the_error_names_it(body: bytes, name: str) -> None:
    """Also written with an escape, and however else strings and numbers look."""
    with pytest.raises(InvalidSubmission, match=f"the name '{name}' twice"):
        decode_json(body)
