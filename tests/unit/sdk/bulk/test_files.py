"""What stands beside the file: the journal, the report; and the arguments."""

import json
from pathlib import Path
from typing import Any

import pytest
from asg_gateway._bulk.command import main
from asg_gateway._bulk.engine import Outcome
from asg_gateway._bulk.items import chunks
from asg_gateway._bulk.journal import Journal
from asg_gateway._bulk.options import UsageError, parse
from asg_gateway._bulk.progress import Counts, Lines
from asg_gateway._bulk.report import Report
from asg_gateway._bulk.sources import Row
from asg_gateway._results import BatchResult

from tests.unit.sdk.bulk.gateway import task


def test_the_journal_outlives_a_torn_line(tmp_path: Path) -> None:
    """A kill while it is written costs that line only, and those after it are read."""
    path = tmp_path / "journal"
    one, two = chunks([Row(1, task("a")), Row(2, task("b"))], "", 1)
    journal = Journal(path, "here")
    assert not journal.is_done(one)
    journal.record(one)
    journal.close()
    path.write_bytes(path.read_bytes() + b'{"done": "12')
    journal = Journal(path, "here")
    assert (journal.is_done(one), journal.is_done(two)) == (True, False)
    journal.record(two)
    journal.close()
    assert Journal(path, "here").is_done(two)
    assert not Journal(path, "elsewhere").is_done(one)


def test_the_report(tmp_path: Path) -> None:
    """Lines with reasons, in order, of this run only; ids are added; no made key is shown."""
    errors, ids = tmp_path / "errors", tmp_path / "ids"
    errors.write_text("of an earlier run")
    ids.write_text("of an earlier run\n")
    rows = [Row(1, task("a")), Row(2, None, [("", "no JSON")], "{"), Row(3, task("bad")), Row(4, task("c"))]
    (chunk,) = chunks(rows, "", 10)
    first, bad, last = chunk.items
    result = BatchResult("bat_1", 2, "accepted", task_ids=("tsk_1", "tsk_2"))
    report = Report(errors, ids)
    assert not errors.exists()
    report.add(chunk, Outcome([(result, [first, last])], [(bad, [("data_url", "data_url is bad")])]))
    report.close()
    assert [json.loads(line) for line in errors.read_text().splitlines()] == [
        {"line": 2, "errors": [{"field": "", "error": "no JSON"}], "text": "{"},
        {"line": 3, "errors": [{"field": "data_url", "error": "data_url is bad"}], "task": task("bad")},
    ]
    added = [json.loads(line) for line in ids.read_text().splitlines()[1:]]
    assert added == [
        {"line": 1, "task_id": "tsk_1", "batch_id": "bat_1"},
        {"line": 4, "task_id": "tsk_2", "batch_id": "bat_1"},
    ]


ENV = {"ASG_API_KEY": "k"}


def test_arguments(tmp_path: Path) -> None:
    """The key from the environment or a file, never from an argument; files beside the file; format by name."""
    key_file = tmp_path / "key"
    key_file.write_text("other\n")
    assert parse(["a.csv"], ENV).api_key == "k"
    assert parse(["a.csv"], {"API_KEY": "k2"}).api_key == "k2"
    assert parse(["a.csv", "--api-key-file", str(key_file)], ENV).api_key == "other"
    given = parse(["dir/a.csv"], ENV)
    assert (given.format, given.journal, given.errors) == (
        "csv",
        Path("dir/a.csv.journal"),
        Path("dir/a.csv.errors.jsonl"),
    )
    piped = parse(["-"], ENV)
    assert (piped.file, piped.format, piped.journal) == (None, "jsonl", None)
    assert parse(["-", "--journal", "j"], ENV).journal == Path("j")


@pytest.mark.parametrize(
    ("arguments", "env", "sentence"),
    [
        (["a.txt"], ENV, "--format"),
        (["a.csv"], {}, "ASG_API_KEY"),
        (["a.csv", "--api-key-file", "/nowhere"], {}, "--api-key-file"),
    ],
)
def test_arguments_that_cannot_be_right(arguments: list[str], env: dict[str, str], sentence: str) -> None:
    """One sentence with what to change."""
    with pytest.raises(UsageError, match=sentence):
        parse(arguments, env)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, Any]:
    code = main([*arguments, "--dry-run", "--json"])
    shown = capsys.readouterr()
    return code, shown.err, json.loads(shown.out) if shown.out else None


def test_a_dry_run_needs_no_gateway(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every line is checked, nothing is sent, no journal is left."""
    file = tmp_path / "tasks.jsonl"
    file.write_text(f"{json.dumps(task('a'))}\n{{\n{json.dumps(task('b'))}\n")
    code, told, result = run(capsys, str(file))
    assert code == 1
    assert "2 valid, 1 invalid; nothing was submitted" in told
    assert result == {"accepted": 2, "replayed": 0, "skipped": 0, "refused": 1, "exit_code": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tasks.jsonl", "tasks.jsonl.errors.jsonl"]
    file.write_text(json.dumps(task("a")))
    assert run(capsys, str(file))[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["tasks.jsonl"]


def test_what_cannot_be_read_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, exit code 2."""
    code, told, _ = run(capsys, str(tmp_path / "nowhere.csv"))
    assert (code, told) == (2, f"asg-submit: {tmp_path}/nowhere.csv: No such file or directory\n")
    (tmp_path / "a.csv").write_text("a,b\n")
    code, told, _ = run(capsys, str(tmp_path / "a.csv"))
    assert code == 2
    assert "the first row must name the columns" in told


def test_lines_of_progress(capsys: pytest.CaptureFixture[str]) -> None:
    """One every ten seconds, with the share that is read and the rate."""
    now = 0.0
    lines = Lines(1000, lambda: now)
    for now in (1.0, 9.0, 10.0, 11.0, 20.0):
        lines.show(Counts(accepted=int(now) * 10), int(now) * 25)
    told = capsys.readouterr().err.splitlines()
    assert told == ["asg-submit:  25%, 100 accepted, 10/s", "asg-submit:  50%, 200 accepted, 10/s"]
