"""Text from outside, as people see it in logs, outputs of commands and errors: without secrets and control characters.

Customers choose keys, URLs and bodies; servers choose the texts of their errors. A control character could change what
a terminal shows, and one of the writing direction what a person reads.

The SDK has the same functions (`asg_gateway._bulk.display`), because it shares no code with the service.
"""

import json
import re
from collections.abc import Mapping, Set
from typing import Any, Final

import msgspec

_HIDDEN: Final = "***"
_ENDS: Final = (
    r"token|sig|signature|key|key-?(?:pair-?)?id|access-?id|secret|pass|password|passwd|pwd|credentials?|auth|"
    r"authorization|session|jwt|sas"
)
_PATTERNS: Final = (
    (re.compile(r"asg_live_[0-9A-Za-z]+"), "asg_live_***"),
    (re.compile(r"(?i)\b(bearer\s+)[^\s\"'\\<>]+"), r"\1***"),
    (re.compile(r"(?i)\b(authorization[\"']?\s?[:=]\s?[\"']?(?:basic|digest|token)\s+)[^\s\"'\\]+"), r"\1***"),
    # The user and the password of a URL. In JSON, slashes may be escaped.
    (re.compile(r"(:\\?/\\?/[^:/@\s\"<>\\]*:)[^@/\s\"<>\\]+@"), r"\1***@"),
    (re.compile(r"(?i)(https?:\\?/\\?/)[^:/@\s\"<>\\?#]+@"), r"\1***@"),
    # A parameter of a URL whose name ends with one of these: token=, X-Amz-Signature=, apiKey=. The URL may be a
    # parameter of another one, encoded once or twice, or be in JSON or HTML, which escape & and =.
    (
        re.compile(
            r"(?i)((?:[?&;#]|%(?:25)*(?:3f|26|23)|\\u0026)"
            rf"(?:[\w.~-]|%(?:25)*(?:2d|5f|2e)){{0,64}}?(?:{_ENDS})"
            r"(?:=|%(?:25)*3d|\\u003d))(?!(?:external|plain)\b)[^&\s\"'<>\\#]+"
        ),
        r"\1***",
    ),
)
_SECRET_FIELD: Final = re.compile(
    r"(?i)(?:.*[-_.])?(?:token|secret|password|passwd|pwd|signature|credentials?|authorization|api[-_]?key|cookie)"
)
"""Names of fields whose whole value is a secret."""
_DEEPEST: Final = 20
_LONGEST_INDENTED: Final = 64 * 1024
_UNPRINTABLE_JSON: Final = re.compile(r"[^\x20-\x7e]")


def redact(text: str) -> str:
    """Return the text without API keys, tokens, passwords and signatures, also those in URLs."""
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def redacted(value: object, depth: int = 0) -> Any:
    """Return a value without secrets, and everything nested in it.

    Strings are redacted, mappings become dicts, other collections lists. Numbers, booleans and None stay as they are;
    of any other object, such as an error, the result is its redacted `repr`.
    """
    if isinstance(value, str):
        return redact(value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if depth < _DEEPEST:
        if isinstance(value, Mapping):
            return {redact(str(name)): _redacted_field(name, member, depth) for name, member in value.items()}
        if isinstance(value, (list, tuple, Set)):
            return [redacted(element, depth + 1) for element in value]
    return redact(repr(value))


def _redacted_field(name: object, value: object, depth: int) -> Any:
    if isinstance(value, (str, bytes)) and _SECRET_FIELD.fullmatch(str(name)):
        return _HIDDEN
    return redacted(value, depth + 1)


def escape(text: str, keep: str = "") -> str:
    r"""Return the text with `\x1b` for a character that is not printable: control, invisible, writing direction.

    Characters in `keep` stay as they are.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character in keep else character.encode("unicode_escape").decode()
        for character in text
    )


def shown(value: object) -> str:
    """Return a value as one line for people: redacted and escaped."""
    return escape(redact(str(value)))


def shown_lines(text: str) -> str:
    """Return a text that may have several lines, redacted and escaped; its line breaks and tabs are kept."""
    return escape(redact(text), keep="\n\t")


def json_text(value: object) -> str:
    r"""Return a value as JSON on one line that a terminal can show.

    It is exact: characters that are not printable are escaped as JSON does it (`\u001b`). It is not redacted.
    """
    text = msgspec.json.encode(value).decode()
    return text if text.isprintable() else _UNPRINTABLE_JSON.sub(_json_escape, text)


def _json_escape(match: re.Match[str]) -> str:
    return match[0] if match[0].isprintable() else json.dumps(match[0])[1:-1]


def indented(text: str) -> str:
    """Return JSON with an indent; anything else, or what has more than 64 KiB, as it is."""
    try:
        return msgspec.json.format(text, indent=2) if len(text) <= _LONGEST_INDENTED else text
    except ValueError:
        return text


def age(seconds: float | None) -> str:
    """Return a duration in its two largest units."""
    if seconds is None:
        return "unknown"
    remaining = max(0, int(seconds))
    parts: list[str] = []
    for name, size in (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)):
        if remaining >= size or (name == "s" and not parts):
            parts.append(f"{remaining // size}{name}")
        remaining %= size
    return " ".join(parts[:2])
