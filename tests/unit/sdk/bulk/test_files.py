"""The command `asg-submit`: journal, report, arguments, dry run and progress."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from asg_gateway._bulk.command import main
from asg_gateway._bulk.engine import Outcome
from asg_gateway._bulk.items import Ordinals, chunks
from asg_gateway._bulk.journal import Journal
from asg_gateway._bulk.options import UsageError, parse
from asg_gateway._bulk.progress import Counts, Lines
from asg_gateway._bulk.report import Report
from asg_gateway._bulk.sources import Row, SourceError
from asg_gateway._bulk.stops import stop_of
from asg_gateway._bulk.streams import RunError, say
from asg_gateway._errors import AuthenticationError, QuotaExhaustedError, ServerError, TimedOutError
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


NEXT_QUOTA = (
    "The quota is monthly: the next one starts on 2027-01-01 at 00:00 UTC. "
    "A smaller --chunk uses what may remain of this one"
)
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
    assert code == 2
    assert stderr.startswith(f"asg-submit: stopped: {tmp_path}/a.csv: the first row must name the columns: type,")


def test_errors_file_is_valid_json_for_every_invalid_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Python's own encoder would write `Infinity`, and fail for what is nested deeply or is not Unicode."""
    deep = "[" * 900 + "1" + "]" * 900
    bad = [
        '{"type": 1e999}',
        f'{{"type": {deep}}}',
        '{"type": "\\ud800"}',
        '{"type": "a", "type": "b"}',
        '{"type": "\x7f"}',
    ]
    file = tmp_path / "tasks.jsonl"
    file.write_bytes("\n".join([*bad, json.dumps(task("a"))]).encode() + b"\n\xff\n")
    assert dry_run(capsys, str(file))[::2] == (
        1,
        {"accepted": 1, "replayed": 0, "skipped": 0, "refused": 6, "exit_code": 1},
    )
    report = Path(f"{file}.errors.jsonl").read_text()
    entries = [json.loads(line, parse_constant=pytest.fail) for line in report.splitlines()]
    assert [entry["line"] for entry in entries] == [1, 2, 3, 4, 5, 7]


def test_errors_file_that_is_a_device_is_not_deleted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--errors /dev/null` means that the errors are not wanted."""
    file, pipe = tmp_path / "tasks.jsonl", tmp_path / "pipe"
    file.write_text(json.dumps(task("a")))
    os.mkfifo(pipe)
    assert dry_run(capsys, str(file), "--errors", str(pipe))[0] == 0
    assert pipe.is_fifo()


@pytest.mark.parametrize("option", ["--errors", "--ids"])
def test_full_disk_ends_with_exit_code_5_and_names_the_file(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1 would say that all other lines were accepted."""
    file = tmp_path / "tasks.jsonl"
    file.write_text("{\n")
    if option == "--ids":
        run = Report(tmp_path / "errors", Path("/dev/full"))
        (chunk,) = chunks([Row(1, task("a"))], "", 10)
        result = BatchResult("bat_1", 1, "accepted", task_ids=("tsk_1",))
        with pytest.raises(RunError, match="cannot write /dev/full: No space left on device"):
            run.add(chunk, Outcome([(result, chunk.items)]))
        with pytest.raises(RunError):
            run.close()
        return
    code, stderr, result_json = dry_run(capsys, str(file), option, "/dev/full")
    assert (code, result_json["exit_code"]) == (5, 5)
    assert "stopped: cannot write /dev/full: No space left on device" in stderr


def test_full_temporary_directory_is_an_error_that_names_the_variable() -> None:
    ordinals = Ordinals()
    ordinals._db.execute("PRAGMA max_page_count = 2")
    with pytest.raises(RunError, match=r"database or disk is full.*: set TMPDIR to a directory with more space"):
        [ordinals.next(b"%16d" % number) for number in range(1_000)]


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (
            QuotaExhaustedError(403, "quota exhausted"),
            4,
            f"the gateway at http://g answers 403: quota exhausted. {NEXT_QUOTA}",
        ),
        (ServerError(503, "unavailable"), 3, "the gateway at http://g answers 503: unavailable"),
        (TimedOutError("no answer from http://g: timed out"), 3, "no answer from http://g: timed out"),
        (AuthenticationError(401, "unknown key"), 2, "the gateway at http://g answers 401: unknown key"),
        (SourceError("the first row is wrong"), 2, "a.csv: the first row is wrong"),
        (UsageError("HTTPS_PROXY is wrong"), 2, "HTTPS_PROXY is wrong"),
        (OSError(5, "Input/output error"), 5, "a.csv: Input/output error"),
        (KeyError("x"), 5, "unexpected error, please report it: KeyError: 'x'"),
    ],
)
def test_every_error_has_an_exit_code_other_than_1_and_a_sentence(error: Exception, code: int, sentence: str) -> None:
    stop = stop_of(error, "a.csv", "http://g", lambda: datetime(2026, 12, 31, 23, 59, tzinfo=UTC))
    assert (stop.code, stop.sentence) == (code, sentence)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--chunk", "1_0"], "must be a number from 1 to 1000"),
        (["--encoding", "base64"], "'base64' is not a known encoding"),
        (["--encoding", "latin9x"], "'latin9x' is not a known encoding"),
        (["--delimiter", "ab"], "must be one character"),
    ],
)
def test_invalid_option_is_exit_code_2(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, stderr, _ = dry_run(capsys, str(tmp_path / "a.csv"), *arguments)
    assert (code, sentence in stderr) == (2, True)


def test_options_for_delimiter_and_encoding_reach_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.csv"
    text = "type\tdata_url\tquestion\toptions\nsentiment\thttps://a.example/1\tGröße?\tgroß|klein\n"
    file.write_bytes(text.encode("cp1252"))
    code, _, result = dry_run(capsys, str(file))
    assert (code, result["refused"]) == (1, 1)
    assert "is not valid UTF-8: set --encoding" in Path(f"{file}.errors.jsonl").read_text()
    assert dry_run(capsys, str(file), "--encoding", "cp1252", "--delimiter", "tab")[0] == 0


def test_progress_is_printed_every_ten_seconds_with_share_and_rate(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    lines = Lines(1000, lambda: now)
    for now in (1.0, 9.0, 10.0, 11.0, 20.0):
        lines.show(Counts(accepted=int(now) * 10), int(now) * 25)
    printed = capsys.readouterr().err.splitlines()
    assert printed == ["asg-submit:  25%, 100 accepted, 10/s", "asg-submit:  50%, 200 accepted, 10/s"]


def test_messages_have_no_control_characters_and_no_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    """The file's name, the gateway's address and its answers come from outside."""
    assert main(["\x1b[2J\x9b\u202e\n?token=S3CRET", "--format=csv", "--dry-run"]) == 2
    stop = stop_of(
        ServerError(503, "\x1b]0;t\x07 asg_live_S3CRET"), "-", "http://u:S3CRET@h", lambda: datetime.now(UTC)
    )
    say(stop.sentence)
    said = capsys.readouterr().err
    assert said.splitlines() == [
        r"asg-submit: \x1b[2J\x9b\u202e\n?token=*** No such file or directory",
        r"asg-submit: the gateway at http://u:***@h answers 503: \x1b]0;t\x07 asg_live_***",
    ]
