"""The command `asg-submit`: journal, report, arguments, dry run and progress."""

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


def test_journal_skips_an_incomplete_line_and_reads_the_lines_after_it(tmp_path: Path) -> None:
    """A process that is killed while it writes leaves such a line. Chunks are recorded for one destination only."""
    path = tmp_path / "journal"
    first, second = chunks([Row(1, task("a")), Row(2, task("b"))], "", 1)
    journal = Journal(path, "here")
    assert not journal.is_done(first)
    journal.record(first)
    journal.close()
    path.write_bytes(path.read_bytes() + b'{"done": "12')
    journal = Journal(path, "here")
    assert (journal.is_done(first), journal.is_done(second)) == (True, False)
    journal.record(second)
    journal.close()
    assert Journal(path, "here").is_done(second)
    assert not Journal(path, "elsewhere").is_done(first)


def test_report_replaces_the_errors_and_appends_the_ids_of_earlier_runs(tmp_path: Path) -> None:
    """Errors are in the order of the lines. Tasks are reported without generated keys."""
    errors, ids = tmp_path / "errors", tmp_path / "ids"
    errors.write_text("of an earlier run")
    ids.write_text("of an earlier run\n")
    rows = [Row(1, task("a")), Row(2, None, [("", "not JSON")], "{"), Row(3, task("bad")), Row(4, task("c"))]
    (chunk,) = chunks(rows, "", 10)
    first, bad, last = chunk.items
    result = BatchResult("bat_1", 2, "accepted", task_ids=("tsk_1", "tsk_2"))
    report = Report(errors, ids)
    assert not errors.exists()
    report.add(chunk, Outcome([(result, [first, last])], [(bad, [("data_url", "data_url is bad")])]))
    report.close()
    assert [json.loads(line) for line in errors.read_text().splitlines()] == [
        {"line": 2, "errors": [{"field": "", "error": "not JSON"}], "text": "{"},
        {"line": 3, "errors": [{"field": "data_url", "error": "data_url is bad"}], "task": task("bad")},
    ]
    earlier, *added = ids.read_text().splitlines()
    assert earlier == "of an earlier run"
    assert [json.loads(line) for line in added] == [
        {"line": 1, "task_id": "tsk_1", "batch_id": "bat_1"},
        {"line": 4, "task_id": "tsk_2", "batch_id": "bat_1"},
    ]


ENV = {"ASG_API_KEY": "k"}


def test_api_key_is_read_from_environment_or_file(tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    key_file.write_text("other\n")
    assert parse(["a.csv"], ENV).api_key == "k"
    assert parse(["a.csv"], {"API_KEY": "k2"}).api_key == "k2"
    assert parse(["a.csv", "--api-key-file", str(key_file)], ENV).api_key == "other"


def test_format_and_paths_are_derived_from_the_file_name() -> None:
    """Standard input is JSON lines, and has a journal only if a path is given."""
    options = parse(["dir/a.csv"], ENV)
    assert options.format == "csv"
    assert (options.journal, options.errors) == (Path("dir/a.csv.journal"), Path("dir/a.csv.errors.jsonl"))
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
def test_error_of_invalid_arguments_says_what_to_change(
    arguments: list[str], env: dict[str, str], sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        parse(arguments, env)


def dry_run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, Any]:
    """Return the exit code, stderr, and the JSON in stdout."""
    code = main([*arguments, "--dry-run", "--json"])
    output = capsys.readouterr()
    return code, output.err, json.loads(output.out) if output.out else None


def test_dry_run_checks_every_line_without_a_gateway_or_a_journal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The errors file of an earlier run is deleted."""
    file = tmp_path / "tasks.jsonl"
    file.write_text(f"{json.dumps(task('a'))}\n{{\n{json.dumps(task('b'))}\n")
    code, stderr, result = dry_run(capsys, str(file))
    assert code == 1
    assert "2 valid, 1 invalid; nothing was submitted" in stderr
    assert result == {"accepted": 2, "replayed": 0, "skipped": 0, "refused": 1, "exit_code": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tasks.jsonl", "tasks.jsonl.errors.jsonl"]
    file.write_text(json.dumps(task("a")))
    assert dry_run(capsys, str(file))[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["tasks.jsonl"]


def test_unreadable_file_ends_with_exit_code_2_and_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, stderr, _ = dry_run(capsys, str(tmp_path / "nowhere.csv"))
    assert (code, stderr) == (2, f"asg-submit: {tmp_path}/nowhere.csv: No such file or directory\n")
    (tmp_path / "a.csv").write_text("a,b\n")
    code, stderr, _ = dry_run(capsys, str(tmp_path / "a.csv"))
    assert (code, stderr.count("\n")) == (2, 1)
    assert "the first row must name the columns" in stderr


def test_progress_is_printed_every_ten_seconds_with_share_and_rate(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    lines = Lines(1000, lambda: now)
    for now in (1.0, 9.0, 10.0, 11.0, 20.0):
        lines.show(Counts(accepted=int(now) * 10), int(now) * 25)
    printed = capsys.readouterr().err.splitlines()
    assert printed == ["asg-submit:  25%, 100 accepted, 10/s", "asg-submit:  50%, 200 accepted, 10/s"]
