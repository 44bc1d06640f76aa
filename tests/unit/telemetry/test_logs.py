"""What the log shows of values from outside, in both formats."""

import json
import re
import subprocess
import sys

import pytest

SECRET = "https://h/?X-Amz-Signature=S3CRET"
CONTROLS = "\x1b]0;t\x07\x9b31m\u202e"

PROGRAM = """
import logging, sys
import structlog
from ingest.telemetry import logs

logs.configure("debug", sys.argv[1])
log = structlog.get_logger()
secret, controls = "https://h/?X-Amz-Signature=S3CRET", "\\x1b]0;t\\x07\\x9b31m\\u202e"
log.info(controls + secret, plain=controls, spaced="a " + controls)
log.info("nested", fields={"urls": [secret, (controls, "amqp://u:S3CRET@h")], "password": "S3CRET"})
log.info("value", error=ValueError(secret + controls))
try:
    raise ValueError(secret + "\\n" + controls)
except ValueError as error:
    log.exception("failed")
    logging.getLogger("library").exception("failed %s", secret + controls)
    logging.getLogger("library").warning("%s", {"token": [secret]}, exc_info=error, stack_info=True)
"""


def output(format_: str) -> str:
    done = subprocess.run([sys.executable, "-c", PROGRAM, format_], capture_output=True, timeout=30, check=True)
    assert done.stdout == b""
    return done.stderr.decode()


@pytest.mark.parametrize("format_", ["json", "console"])
def test_log_has_no_secret_in_nested_values_errors_and_tracebacks(format_: str) -> None:
    text = output(format_)
    shown = [line for line in text.splitlines() if "secret" not in line]  # lines of the source in tracebacks
    assert "S3CRET" not in "\n".join(shown)
    assert "X-Amz-Signature=***" in text
    assert "ValueError: https://h/" in text


@pytest.mark.parametrize("format_", ["json", "console"])
def test_log_has_no_control_characters_but_those_of_its_own(format_: str) -> None:
    text = re.sub(r"\x1b\[[0-9;]*m", "", output(format_))  # the colours of the text format
    assert [character for character in text if not character.isprintable() and character not in "\n\t"] == []


def test_json_log_is_exact() -> None:
    lines = [json.loads(line) for line in output("json").splitlines()]
    assert lines[0]["plain"] == CONTROLS
    assert lines[1]["fields"]["urls"][1][0] == CONTROLS


def test_traceback_in_the_text_format_keeps_its_lines() -> None:
    assert "\nTraceback (most recent call last):\n  File " in output("console")
