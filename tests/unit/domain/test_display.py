"""Text from outside, as people see it: without secrets, and harmless on a terminal."""

import json
import time
from types import ModuleType

import pytest
from asg_gateway._bulk import display as sdk_display

from ingest.domain import display

S3 = "https://b.s3.amazonaws.com/doc.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256"
BOTH = pytest.mark.parametrize("module", [display, sdk_display], ids=["service", "sdk"])
"""The SDK shares no code with the service, so it has functions of its own that do the same."""


@BOTH
@pytest.mark.parametrize(
    "text",
    [
        "key asg_live_S3CRET was sent",
        "amqp://user:S3CRET@host/",
        r"https:\/\/user:S3CRET@host\/",
        "https://S3CRET@host/repository",
        "Authorization: Bearer S3CRET",
        '{"authorization": "Basic S3CRET"}',
        f"{S3}&X-Amz-Signature=S3CRET",
        f"{S3}&X-Amz-Credential=S3CRET%2F20260101%2Feu%2Fs3%2Faws4_request&X-Amz-Date=20260101T000000Z",
        f"{S3}&x-amz-security-token=S3CRET",
        f"{S3}&X%2DAmz%2DSignature=S3CRET",
        "https://storage.googleapis.com/b/o?X-Goog-Signature=S3CRET",
        "https://b.s3.amazonaws.com/o?AWSAccessKeyId=S3CRET&Expires=1&Signature=S3CRET",
        "https://a.blob.core.windows.net/c/b?sv=2022&sig=S3CRET%3D",
        "https://d.cloudfront.net/o?Key-Pair-Id=S3CRET",
        "https://h/?token=S3CRET",
        "https://h/?a=1;access_token=S3CRET",
        "https://h/?apiKey=S3CRET",
        "https://h/?api_key=S3CRET",
        "https://h/?key=S3CRET",
        "https://h/?secret=S3CRET#part",
        "https://h/cb#access_token=S3CRET",
        "https://h/?password=S3CRET",
        "https://db.example/a.json?auth=S3CRET",
        r'{"data_url":"https://h/?a=1\u0026token=S3CRET"}',
        r'{"data_url":"https://h/?token\u003dS3CRET"}',
        "https://h/?a=1&amp;token=S3CRET",
        "https://proxy/?url=https%3A%2F%2Fh%2F%3Fa%3D1%26token%3DS3CRET",
        "https://proxy/?url=https%253A%252F%252Fh%252F%253Ftoken%253DS3CRET",
        "GET /v1/tasks?token=S3CRET HTTP/1.1",
    ],
)
def test_secret_is_not_shown(module: ModuleType, text: str) -> None:
    assert "S3CRET" not in module.redact(text)
    assert "***" in module.redact(text)


@BOTH
@pytest.mark.parametrize(
    "text",
    [
        "https://h/?page=2&sort=asc&design=x#part",
        "add ?auth=external to INGEST_BROKER_URL",
        "Authorization: Bearer <api_key> is required",
        "data_url must be an https URL of at most 2048 characters",
        '{"type": "moderation", "idempotency_key": "order-1"}',
        "amqp://ingest@host:5672,host2:5672/vhost",
        "aerospike://h:3000/n?tls=true&keyfile=/etc/key.pem",
    ],
)
def test_text_without_a_secret_is_shown_unchanged(module: ModuleType, text: str) -> None:
    assert module.redact(text) == text


@BOTH
def test_rest_of_a_url_and_of_json_stays_readable(module: ModuleType) -> None:
    body = '{"data_url": "https://h/doc.txt?a=1&token=S3CRET&b=2", "auth": "Bearer S3CRET", "type": "sentiment"}'
    assert module.redact(body) == body.replace("S3CRET", "***")


@BOTH
@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;title\x07\x1b[2J", r"\x1b]0;title\x07\x1b[2J"),
        ("\x9b31mred\x85", r"\x9b31mred\x85"),
        ("a\r\nb\tc\x7f", r"a\r\nb\tc\x7f"),
        ("abc\u202egpj.exe\u2066\u200f", r"abc\u202egpj.exe\u2066\u200f"),
        ("a\u2028b\u2029", r"a\u2028b\u2029"),
        ("\U000e0041", r"\U000e0041"),
        ("\udcff", r"\udcff"),
        ("Größe 大小 😀 a\\b", "Größe 大小 😀 a\\b"),
    ],
)
def test_characters_that_are_not_printable_are_escaped(module: ModuleType, text: str, shown: str) -> None:
    assert module.shown(text) == shown


@BOTH
@pytest.mark.parametrize(
    "part", ["&token", "://a:", "https://", "bearer ", "25", "%2525", "?token%3D", "authorization: "]
)
def test_time_is_proportional_to_the_length(module: ModuleType, part: str) -> None:
    """A customer chooses the text. 1 MB takes at most 1 s; a quadratic pattern would take minutes."""
    began = time.perf_counter()
    module.redact("&%" + part * (1_000_000 // len(part)))
    assert time.perf_counter() - began < 5


def test_line_breaks_of_a_text_with_several_lines_are_kept() -> None:
    assert display.shown_lines("a\tb\n\x1b[m ?token=x\r\n") == "a\tb\n\\x1b[m ?token=***\\r\n"


def test_nested_values_have_no_secrets_and_keep_their_types() -> None:
    value = {
        "url": "https://h/?token=S3CRET",
        "password": "S3CRET",
        "headers": {"Authorization": "S3CRET", "https://h/?sig=S3CRET": 1, "Cookie": b"S3CRET"},
        "list": [1, 2.5, None, True, ("amqp://u:S3CRET@h",)],
        "error": ValueError("asg_live_S3CRET"),
        "bytes": b"asg_live_S3CRET",
    }
    assert display.redacted(value) == {
        "url": "https://h/?token=***",
        "password": "***",
        "headers": {"Authorization": "***", "https://h/?sig=***": 1, "Cookie": "***"},
        "list": [1, 2.5, None, True, ["amqp://u:***@h"]],
        "error": "ValueError('asg_live_***')",
        "bytes": "b'asg_live_***'",
    }


def test_value_that_contains_itself_ends() -> None:
    endless: list[object] = ["asg_live_S3CRET"]
    endless.append(endless)
    assert "S3CRET" not in str(display.redacted(endless))


def test_json_is_exact_and_printable() -> None:
    value = {"message_id": "a\x1b\x9b\u202e\U000e0041\x7f\r\né😀"}
    text = display.json_text(value)
    assert text.isprintable()
    assert "é😀" in text
    assert json.loads(text) == value
