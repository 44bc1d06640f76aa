"""Rows from files: every line is a task or has faults, with its line number."""

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


def test_jsonl_skips_byte_order_mark_and_blank_lines() -> None:
    """Rows have the line numbers of the file."""
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
        (b"[" * 100_000, "the line is not JSON: nested too deeply"),
        (b"1" * 5_000, "the line is not JSON"),
        (json.dumps(task("a", label_spec={"question": "\ud800", "options": ["a", "b"]})).encode(), "not Unicode"),
        (b" " * MAX_BYTES + b"{}", "the line is too large"),
    ],
)
def test_invalid_line_has_a_fault_and_the_next_line_is_read(line: bytes, sentence: str) -> None:
    invalid, valid = lines(line, json.dumps(task("b")).encode())
    assert sentence in invalid.faults[0][1]
    assert (valid.number, valid.task, valid.faults) == (2, task("b"), [])


@given(st.binary(max_size=200))
def test_every_row_read_from_arbitrary_bytes_has_a_task_or_a_fault(data: bytes) -> None:
    """Property: blank lines have no row, so there are at most as many rows as lines."""
    rows = lines(data)
    assert all(row.faults or row.task for row in rows)
    assert len(rows) <= data.count(b"\n") + 1


def test_csv_rows_become_tasks() -> None:
    """Columns are in any order. Quotes, line breaks in cells, empty cells and further label_spec keys are supported.

    A row of several lines has the number of its first line.
    """
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
def test_invalid_csv_file_raises_source_error(text: str, sentence: str) -> None:
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
def test_invalid_csv_row_has_a_fault_and_the_next_row_is_read(row: str, sentence: str) -> None:
    invalid, valid = table(f"{HEAD}\n{row}\nsentiment,https://a.example,q?,a|b\n")
    assert sentence in invalid.faults[0][1]
    assert not valid.faults


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(0, 12) | st.sampled_from([3.0, 2.5, 1e300]) | st.text(max_size=3),
    lambda children: st.lists(children, max_size=3),
)
names = ["type", "data_url", "label_spec", "consensus_threshold", "callback_url", "idempotency_key", "colour"]


@given(st.dictionaries(st.sampled_from(names), json_values, max_size=3), json_values, json_values)
def test_task_with_a_fault_is_invalid_for_the_service_too(changes: dict[str, Any], question: Any, options: Any) -> None:
    """Property: the checks of the SDK refuse nothing that the service accepts."""
    fields = task("a", label_spec={"question": question, "options": options}) | changes
    if faults(fields):
        with pytest.raises(InvalidSubmission):
            validate_task(fields)


def test_faults_name_every_invalid_field() -> None:
    invalid = {
        "type": "mood",
        "data_url": "http://a.example",
        "label_spec": {"options": ["a", "a"]},
        "consensus_threshold": True,
        "callback_url": 3,
        "idempotency_key": "",
        "colour": "red",
    }
    fields = {field for field, _ in faults(invalid)}
    assert fields == {*invalid, "label_spec.question", "label_spec.options"} - {"label_spec"}


def test_valid_tasks_have_no_faults() -> None:
    assert faults(task("a", consensus_threshold=2, callback_url="https://h.example", idempotency_key="k")) == []
    assert faults(task("a", label_spec={"question": "q", "options": ["a", "b", "a"]})) == []
