"""Commands show text from outside without secrets and control characters. JSON is exact."""

import io
import json
from typing import Any

import msgspec
import pytest
from rich.console import Console

from ingest.cli import dlq_trim, dlq_view
from ingest.cli.doctor import print_findings
from ingest.cli.exits import Ending, exit_code
from ingest.cli.registry import show_fields
from ingest.cli.status_view import render
from ingest.domain.dead_letters import DeadLetter, Trimmed, read
from ingest.domain.errors import ConfigurationError
from ingest.domain.findings import warning
from ingest.domain.overview import BrokerState, DeadReason, Overview, ProcessState, QueueState, StoreState
from ingest.operations.dead_letters import Group, Report, add_to
from ingest.operations.trim import CustomerBytes, TrimReport
from tests.support.deliveries import delivery

CONTROLS = "x\x1b]0;t\x07\x9b31m\u202e\r\n"
HOSTILE = CONTROLS + "asg_live_S3CRET https://u:S3CRET@h/?X-Amz-Signature=S3CRET"
BODY = '{"data_url":"https://h/?a=1&token=S3CRET","type":"\x9b\u202e"}'


def assert_harmless(text: str, *, times: int = 1) -> None:
    assert "S3CRET" not in text
    assert [character for character in text if not character.isprintable() and character != "\n"] == []
    assert text.replace("\n", "").count(r"x\x1b]0;t\x07\x9b31m\u202e\r\n") == times, text


def dead_letter() -> DeadLetter:
    dead = read(
        delivery(body=BODY.encode(), queue="ingest.dead", routing_key=f"task.submitted.{CONTROLS}", message_id=HOSTILE),
        frozenset(),
    )
    errors = ({"field": HOSTILE, "error": HOSTILE},)
    return msgspec.structs.replace(dead, reason=HOSTILE, error=HOSTILE, errors=errors, cust_id=HOSTILE, id=HOSTILE)


def group() -> Group:
    groups: dict[str, Group] = {}
    add_to(groups, [dead_letter()])
    return groups[HOSTILE]


def test_list_of_dead_letters_is_harmless() -> None:
    assert_harmless(dlq_view.groups_text([group()]), times=4)
    assert_harmless(dlq_view.counts({HOSTILE: group()}))


def test_shown_dead_letter_is_harmless_and_its_body_readable() -> None:
    text = dlq_view.dead_text(dead_letter(), raw=False)
    assert_harmless(text, times=7)
    assert '{\n  "data_url": "https://h/?a=1&token=***",\n' in text
    assert r"routing_key: task.submitted.x\x1b]0;t\x07\x9b31m\u202e\r\n" in text


def test_raw_dead_letter_has_its_secrets_but_no_control_characters() -> None:
    text = dlq_view.dead_text(dead_letter(), raw=True)
    assert "https://h/?a=1&token=S3CRET" in text
    assert "\x1b" not in text
    assert "\u202e" not in text


@pytest.mark.parametrize("raw", [False, True])
def test_dead_letter_in_json_is_exact_but_for_secrets(raw: bool, capsys: pytest.CaptureFixture[str]) -> None:
    dlq_view.print_json(dlq_view.dead_json(dead_letter(), raw=raw))
    printed = capsys.readouterr().out.removesuffix("\n")
    assert printed.isprintable()
    shown = json.loads(printed)
    submission = shown["submission"]
    assert submission["routing_key"] == f"task.submitted.{CONTROLS}"
    assert submission["body"] == (BODY if raw else BODY.replace("S3CRET", "***"))
    assert submission["message_id"] == HOSTILE if raw else "S3CRET" not in printed


def test_reports_of_a_redrive_and_an_export_are_harmless() -> None:
    report = Report(matched=2)
    report.done[HOSTILE] += 1
    report.kept[HOSTILE] += 1
    assert_harmless(dlq_view.report_text(report, Ending.COMPLETE, 0, dry_run=False), times=2)
    assert_harmless(dlq_view.export_text(1, Ending.FAILED, 1, HOSTILE))


def test_trimmed_dead_letter_says_what_was_removed_and_has_no_body() -> None:
    dead = msgspec.structs.replace(dead_letter(), trimmed=Trimmed("2026-04-09T12:00:00Z", 12_345, "ab" * 32))
    text = dlq_view.dead_text(dead, raw=False)
    assert_harmless(text, times=7)
    assert "trimmed: at 2026-04-09T12:00:00Z, the body had 12,345 bytes\n" in text
    assert f"body_sha256: {'ab' * 32}\n" in text
    assert "what to do: Never redriven" in text
    assert "data_url" not in text
    for raw in (False, True):
        fields = dlq_view.dead_json(dead, raw=raw)
        assert fields["trimmed"] == {"at": "2026-04-09T12:00:00Z", "body_bytes": 12_345, "body_sha256": "ab" * 32}
        assert not {"body", "body_base64"} & set(fields["submission"])


def trim_report() -> TrimReport:
    usage = CustomerBytes(found=3 * 2**30, trimmed=1234, copies=2, removed=2 * 2**30)
    small = CustomerBytes(found=2 * 2**30)
    return TrimReport(2**30, customers={HOSTILE: usage, "": small})


def test_report_of_a_trim_is_harmless_and_has_a_line_for_each_customer() -> None:
    text = dlq_trim.trim_text(trim_report(), Ending.COMPLETE, dry_run=False)
    assert_harmless(text)
    acme, copies, small, above = text.split("\n")
    assert acme.endswith(": trimmed 1,234, 2.0 GiB removed, 1.0 GiB kept")
    assert copies.startswith("  2 were in the queue a second time")
    assert small == "no customer: trimmed 0, 0 bytes removed, 2.0 GiB kept"
    assert "still above 1.0 GiB" in above
    assert "would trim 1,234" in dlq_trim.trim_text(trim_report(), Ending.COMPLETE, dry_run=True)
    nothing = dlq_trim.trim_text(TrimReport(2**20), Ending.COMPLETE, dry_run=False)
    assert nothing == "nothing to trim: no customer has more than 1.0 MiB"


def test_report_of_a_trim_that_ended_early_says_that_the_rest_is_unchanged() -> None:
    report = trim_report()
    assert "interrupted: the rest is unchanged" in dlq_trim.trim_text(report, Ending.INTERRUPTED, dry_run=False)
    report.failed["nacked"] += 3
    text = dlq_trim.trim_text(report, Ending.COMPLETE, dry_run=False)
    assert "did not confirm 3 nacked" in text
    assert "still above" not in text
    assert dlq_trim.trim_json(report, Ending.COMPLETE, dry_run=False)["failed"] == {"nacked": 3}


def overview() -> Overview:
    return Overview(
        at=1_775_735_999.0,
        broker=BrokerState(
            name=HOSTILE, version=HOSTILE, queues=[QueueState(name=HOSTILE, ready=1)], problems=[HOSTILE]
        ),
        store=StoreState(name=HOSTILE, version=HOSTILE, used=HOSTILE, problems=[HOSTILE]),
        processes=[ProcessState(url=HOSTILE, process=HOSTILE)],
        process_problems=[HOSTILE],
        dead=[DeadReason(reason=HOSTILE, count=1)],
        dead_note=HOSTILE,
    )


@pytest.mark.parametrize("width", [1000, 80])
def test_status_is_harmless(width: int) -> None:
    output = io.StringIO()
    Console(file=output, width=width, height=24, force_terminal=False).print(render(overview()), soft_wrap=True)
    assert_harmless(output.getvalue(), times=13)


def test_findings_of_doctor_are_harmless() -> None:
    output = io.StringIO()
    print_findings(Console(file=output, width=1000, highlight=False), [warning("broker", HOSTILE, HOSTILE)])
    assert_harmless(output.getvalue(), times=2)


def failing(error: Exception) -> Any:
    def job() -> int:
        raise error

    return job


def test_error_is_one_harmless_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(failing(ConfigurationError(HOSTILE))) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert_harmless(printed)


def test_traceback_of_an_unexpected_error_is_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(failing(ValueError(HOSTILE))) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("Traceback (most recent call last):\n  File ")
    assert "S3CRET" not in printed
    assert [character for character in printed if not character.isprintable() and character != "\n"] == []


def test_fields_of_a_customer_are_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    """Webhooks are shown completely, because `ingest webhook remove` needs them."""
    show_fields({"cust_id": CONTROLS, "webhooks": [CONTROLS, "https://h/?token=a"]}, json=False)
    printed = capsys.readouterr().out
    assert_harmless(printed, times=2)
    assert "https://h/?token=a" in printed
