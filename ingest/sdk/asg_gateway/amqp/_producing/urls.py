"""The service's rule for URLs. Over RabbitMQ, one wrong URL would be found only after its whole batch is published."""

import re
from collections.abc import Mapping
from typing import Any, Final

from asg_gateway._checks import Fault

_MAX: Final = 2_048
_HIDDEN: Final = (
    r"\u0000-\u0020\u007f-\u00a0\u00ad\u034f\u061c\u115f\u1160\u1680\u17b4\u17b5\u180b-\u180f\u2000-\u200f\u2028-\u202f"
    r"\u205f-\u206f\u3000\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\uffff"
)
_LABEL: Final = r"[0-9A-Za-z](?:[0-9A-Za-z-]{0,61}[0-9A-Za-z])?"
_TOP_LABEL: Final = r"[A-Za-z](?:[0-9A-Za-z-]{0,61}[0-9A-Za-z])?"
_OCTET: Final = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_GROUP: Final = r"[0-9A-Fa-f]{1,4}"
_IPV6: Final = "|".join(
    [
        rf"(?:{_GROUP}:){{7}}{_GROUP}",
        rf"(?:{_GROUP}:){{1,7}}:",
        *[rf"(?:{_GROUP}:){{1,{7 - right}}}(?::{_GROUP}){{1,{right}}}" for right in range(1, 7)],
        rf":(?:(?::{_GROUP}){{1,7}}|:)",
    ]
)
_HOST: Final = rf"(?:(?:{_LABEL}\.)*{_TOP_LABEL}\.?|(?:{_OCTET}\.){{3}}{_OCTET}|\[(?:{_IPV6})\])"
_PORT: Final = r"(?:[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
PATTERN: Final = rf"^[hH][tT][tT][pP][sS]://{_HOST}(?::{_PORT})?(?:[/?#][^{_HIDDEN}]*)?$"

_matches = re.compile(PATTERN).fullmatch
_RULE: Final = (
    f"must be an https URL of at most {_MAX:,} characters, without credentials, spaces and invisible characters, whose "
    "host is a domain name in ASCII (xn-- for other letters) or an IP address"
)


def url_faults(task: Mapping[str, Any]) -> list[Fault]:
    """Return the faults of the URLs in a task, or in the envelope of a batch. Its URLs are strings."""
    return [
        (name, f"{name} {_RULE}")
        for name in ("data_url", "callback_url")
        if name in task and (_matches(task[name]) is None or len(task[name]) > _MAX)
    ]
