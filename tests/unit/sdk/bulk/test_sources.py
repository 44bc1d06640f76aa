"""Rows from files: every line is a task or has faults, with its line number."""

import io
import json
from typing import Any

import pytest
from asg_gateway._bulk.csv_source import csv_rows
from asg_gateway._bulk.sources import Row, SourceError, jsonl
from asg_gateway._checks import faults
from asg_gateway._tasks import MAX_BYTES
from hypothesis import given
from hypothesis import strategies as st

from ingest.domain.errors import InvalidSubmission
from ingest.domain.validation import validate_task
from tests.unit.sdk.bulk.gateway import task

HEAD = "type,data_url,question,options"


def lines(*parts: bytes) -> list[Row]:
    return list(jsonl(opened(b"\n".join(parts))))


def table(text: str, **options: str) -> list[Row]:
    return list(csv_rows(opened(text.encode("utf-8", "surrogateescape")), **options))


def opened(content: bytes) -> io.BufferedReader:
    return io.BufferedReader(io.BytesIO(content))


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
        (b"\xff", "the line is not valid UTF-8: set --encoding"),
        (b'{"type": "sentiment", "type": "moderation"}', "the line has the name 'type' twice in one object"),
        (b'{"label_spec": {"a": [{"b": 1, "c": 2, "b": 3}]}}', "the line has the name 'b' twice"),
        (b'{"type": 1e999}', "a number out of range"),
        (b'{"type": ' + b"[" * 200 + b"1" + b"]" * 200 + b"}", "nested too deeply"),
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


@given(st.lists(st.sampled_from(["a", '"', ",", ";", "\n", "\r\n", "\0", "\udcff", '"a"', "[", "|"]), max_size=40))
def test_every_csv_row_read_from_arbitrary_text_has_a_task_or_a_fault(parts: list[str]) -> None:
    """Property: a valid row at the end is always read, and at its line."""
    text = "".join(parts)
    rows = table(f"{HEAD}\n{text}\nsentiment,https://a.example/last,q?,a|b\n")
    assert all(row.faults or row.task for row in rows)
    count = len(text.replace("\r\n", "\n").split("\n"))
    assert (rows[-1].number, rows[-1].faults, (rows[-1].task or {})["data_url"]) == (
        count + 2,
        [],
        "https://a.example/last",
    )


@pytest.mark.parametrize("bad", ['"Q" ?', '"Q?', 'Q?,"', '"Q?\n" x'])
def test_one_bad_csv_row_never_hides_the_others(bad: str) -> None:
    rows_text = [f"sentiment,https://a.example/{number},Q?,a|b" for number in range(700)]
    rows_text[600] = f"sentiment,https://a.example/600,{bad},a|b"
    rows = table("\n".join([HEAD, *rows_text]))
    valid = {row.task["data_url"] for row in rows if row.task and not row.faults}
    assert valid == {f"https://a.example/{number}" for number in range(700) if number != 600}
    first = next(row for row in rows if row.faults)
    assert (first.number, "https://a.example/600" in (first.text or "")) == (602, True)


@pytest.mark.parametrize(("delimiter", "options"), [(";", {}), ("\t", {}), (",", {}), ("#", {"delimiter": "#"})])
def test_delimiter_is_detected_or_given(delimiter: str, options: dict[str, str]) -> None:
    """Excel writes semicolons where the comma is the decimal separator, and a byte order mark."""
    text = f"\ufeff{HEAD}\nsentiment,https://a.example/1,Wie ist die Stimmung?,gut|schlecht\n"
    (row,) = table(text.replace(",", delimiter), **options)
    assert row.faults == []
    assert row.task == {
        "type": "sentiment",
        "data_url": "https://a.example/1",
        "label_spec": {"question": "Wie ist die Stimmung?", "options": ["gut", "schlecht"]},
    }


@pytest.mark.parametrize(("written", "given"), [("cp1252", "cp1252"), ("utf-16", None), ("utf-16-le", "utf-16-le")])
def test_encoding_is_detected_or_given(written: str, given: str | None) -> None:
    text = f"{HEAD}\nsentiment,https://a.example/1,Größe?,groß|klein\n"
    (row,) = csv_rows(opened(text.encode(written)), given)
    assert (row.task or {})["label_spec"] == {"question": "Größe?", "options": ["groß", "klein"]}
    line = json.dumps(task("a", label_spec={"question": "Größe?", "options": ["a", "b"]}), ensure_ascii=False)
    rows = list(jsonl(opened(f"{line}\r\n{line}".encode(written)), given))
    assert [(row.number, (row.task or {})["label_spec"]["question"]) for row in rows] == [(1, "Größe?"), (2, "Größe?")]


@pytest.mark.parametrize("cell", ["1_0", "\uff13", "+3", "3.0", "0x3", "9" * 5_000])
def test_cell_that_is_no_plain_number_is_refused(cell: str) -> None:
    (row,) = table(f"{HEAD},consensus_threshold\nsentiment,https://a.example,q?,a|b,{cell}\n")
    assert row.faults == [("consensus_threshold", "consensus_threshold must be an integer between 2 and 10")]


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


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "the first row must name the columns: type, data_url, question, options are missing, and it is empty"),
        ("type,data_url,question\n", "options is missing. It has, separated by commas: 'type', 'data_url', 'question'"),
        ("type#data_url#question#options\n", "'type#data_url#question#options'. .* otherwise, set --delimiter"),
        ("type;Type;data_url;question\n", "options is missing. It has, separated by semicolons: 'type', 'Type'"),
        (f"{HEAD},colour\n", "unknown columns: 'colour'; the known columns are type, "),
        (f"{HEAD},label_spec.\n", "unknown columns: 'label_spec.'"),
        (f"{HEAD},type\n", "the first row names a column twice: 'type'"),
        (f"{HEAD},label_spec.question\n", "the columns question and label_spec.question mean the same: remove one"),
        (f"{HEAD},label_spec.options\n", "the columns options and label_spec.options mean the same"),
        ("\udcff,data_url\n", "the first row is not valid UTF-8: set --encoding"),
        (f"{HEAD}\n".encode("utf-16-le").decode(), "the first row is not valid UTF-8: set --encoding .* utf-16"),
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
        ("sentiment,https://a.example,\udcff,a|b", "the row is not valid UTF-8: set --encoding"),
        ('sentiment,https://a.example,"Q" ?,a|b', "the row is not valid CSV"),
        ('sentiment,https://a.example,"Q?,a|b', "the row is not valid CSV"),
        ('"sentiment,https://a.example,Q?,a|b', "the row is not valid CSV"),
        ("sentiment,https://a.example,q?," + "[" * 100_000, "at least 2 entries"),
        (f"sentiment,https://a.example,{'q' * MAX_BYTES},a|b", "the line is too large"),
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
