"""Files to rows: every line is a task or a reason, under its number."""

import io
import json
from typing import Any

import pytest
from asg_gateway._bulk import sources
from asg_gateway._bulk.checks import faults
from asg_gateway._bulk.sources import Row, SourceError
from asg_gateway._tasks import MAX_BYTES
from hypothesis import given
from hypothesis import strategies as st

from ingest.domain.errors import InvalidSubmission
from ingest.domain.validation import validate_task
from tests.unit.sdk.bulk.gateway import task


def lines(*parts: bytes) -> list[Row]:
    return list(sources.jsonl(io.BytesIO(b"\n".join(parts))))


def table(text: str) -> list[Row]:
    return list(sources.csv_rows(io.BytesIO(text.encode("utf-8", "surrogateescape"))))


def test_jsonl() -> None:
    """A byte order mark and blank lines are passed over; numbers are those of the file."""
    good = json.dumps(task("a")).encode()
    rows = lines(b"\xef\xbb\xbf" + good, b"", b"  \r", good + b"\r")
    assert [(row.number, row.task, row.faults) for row in rows] == [(1, task("a"), []), (4, task("a"), [])]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (b"{", "the line is not JSON"),
        (b"[]", "the line must be a JSON object"),
        (b'{"a": NaN}', "the line is not JSON"),
        (b"\xff", "the line is not UTF-8"),
        (b"[" * 100_000, "the line is not JSON"),
        (b"1" * 5_000, "the line is not JSON"),
        (json.dumps(task("a", label_spec={"question": "\ud800", "options": ["a", "b"]})).encode(), "not Unicode"),
        (b" " * MAX_BYTES + b"{}", "the line must be smaller"),
    ],
)
def test_lines_that_are_no_tasks(line: bytes, sentence: str) -> None:
    """A reason each, and the line after is read."""
    wrong, good = lines(line, json.dumps(task("b")).encode())
    assert sentence in wrong.faults[0][1]
    assert (good.number, good.task, good.faults) == (2, task("b"), [])


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader(data: bytes) -> None:
    """Law: each line is a row with a task or a fault, or is blank."""
    rows = lines(data)
    assert all(row.faults or row.task for row in rows)
    assert len(rows) <= data.count(b"\n") + 1


def test_csv() -> None:
    """Columns in any order, quotes, line ends within cells, further keys, empty cells; numbers are of first lines."""
    rows = table(
        "data_url,type,options,question,consensus_threshold,label_spec.hint,callback_url\n"
        'https://a.example/1,moderation,safe|unsafe,"Is it\nsafe, ""really""?",5,look twice,\n'
        "\n"
        'https://a.example/2,sentiment,"[""a|b"", ""c""]",q?,,,https://h.example\n'
    )
    assert [row.number for row in rows] == [2, 5]
    assert rows[0].task == {
        "type": "moderation",
        "data_url": "https://a.example/1",
        "consensus_threshold": 5,
        "label_spec": {"question": 'Is it\nsafe, "really"?', "options": ["safe", "unsafe"], "hint": "look twice"},
    }
    assert rows[1].task == {
        "type": "sentiment",
        "data_url": "https://a.example/2",
        "callback_url": "https://h.example",
        "label_spec": {"question": "q?", "options": ["a|b", "c"]},
    }
    assert not any(row.faults for row in rows)


HEAD = "type,data_url,question,options"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "the first row must name the columns"),
        ("type,data_url,question\n", "options is missing"),
        (f"{HEAD},colour\n", "unknown columns: 'colour'"),
        (f"{HEAD},type\n", "a column occurs twice"),
        (f'{HEAD}\nsentiment,https://a.example,"q?,a|b\n', "line 2: unexpected end of data"),
    ],
)
def test_files_that_are_no_tables(text: str, sentence: str) -> None:
    """Said before, or where, it stops to make sense."""
    with pytest.raises(SourceError, match=sentence):
        table(text)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("sentiment,https://a.example,q?", "the row has 3 cells, the first row has 4"),
        ("sentiment,https://a.example,q?,a", "label_spec.options must have at least 2 entries"),
        ("mood,https://a.example,q?,a|b", "type must be one of"),
        (",https://a.example,q?,a|b", "type is required"),
        ("sentiment,https://a.example,\udcff,a|b", "not Unicode"),
    ],
)
def test_rows_that_are_no_tasks(row: str, sentence: str) -> None:
    """A reason each, and the row after is read."""
    wrong, good = table(f"{HEAD}\n{row}\nsentiment,https://a.example,q?,a|b\n")
    assert sentence in wrong.faults[0][1]
    assert not good.faults


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(0, 12) | st.sampled_from([3.0, 2.5, 1e300]) | st.text(max_size=3),
    lambda each: st.lists(each, max_size=3),
)
names = ["type", "data_url", "label_spec", "consensus_threshold", "callback_url", "idempotency_key", "colour"]


@given(st.dictionaries(st.sampled_from(names), json_values, max_size=3), json_values, json_values)
def test_the_checks_refuse_only_what_the_gateway_refuses(changes: dict[str, Any], question: Any, options: Any) -> None:
    """Law: a task with a fault is one that the service's own validation refuses."""
    made = task("a", label_spec={"question": question, "options": options}) | changes
    if faults(made):
        with pytest.raises(InvalidSubmission):
            validate_task(made)


def test_the_checks_find_what_is_likely() -> None:
    """Each field, said with its name, as the gateway says it."""
    wrong = {
        "type": "mood",
        "data_url": "http://a.example",
        "label_spec": {"options": ["a", "a"]},
        "consensus_threshold": True,
        "callback_url": 3,
        "idempotency_key": "",
        "colour": "red",
    }
    found = dict(faults(wrong))
    assert set(found) == {*wrong, "label_spec.question", "label_spec.options"} - {"label_spec"}
    assert faults(task("a", consensus_threshold=2, callback_url="https://h.example", idempotency_key="k")) == []
    assert faults(task("a", label_spec={"question": "q", "options": ["a", "b", "a"]})) == []
