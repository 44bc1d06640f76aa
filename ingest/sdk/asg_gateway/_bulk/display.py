"""Text from outside, as people see it: without secrets and control characters.

The gateway and the file choose it: a control character could change what a terminal shows. The service has the same
functions, because the SDK shares no code with it.
"""

import re
from typing import Final

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


def redact(text: str) -> str:
    """Return the text without API keys, tokens, passwords and signatures, also those in URLs."""
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def shown(text: str) -> str:
    r"""Return the text as one line, redacted, and with `\x1b` for a character that is not printable."""
    text = redact(text)
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )
