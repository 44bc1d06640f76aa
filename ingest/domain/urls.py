"""The URLs that tasks and webhooks may have: a pattern for the validation, and the error for a URL that does not match.

Consumers fetch these URLs, and people read them. So a host is what every client understands in the same way, and no
character is invisible.
"""

import re
from typing import Final

import idna

MAX_URL: Final = 2_048

# The pattern is published in the API's documents, so it must mean the same in every engine: no `\s`, no `\p`, no
# look-around, and no characters beyond U+FFFF in a class.
_HIDDEN: Final = (
    r"\u0000-\u0020\u007f-\u00a0\u00ad\u034f\u061c\u115f\u1160\u1680\u17b4\u17b5\u180b-\u180f\u2000-\u200f\u2028-\u202f"
    r"\u205f-\u206f\u3000\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\uffff"
)
_LABEL: Final = r"[0-9A-Za-z](?:[0-9A-Za-z-]{0,61}[0-9A-Za-z])?"
_TOP_LABEL: Final = r"[A-Za-z](?:[0-9A-Za-z-]{0,61}[0-9A-Za-z])?"  # all that begins with a digit is an IPv4 address
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
URL_PATTERN: Final = rf"^[hH][tT][tT][pP][sS]://{_HOST}(?::{_PORT})?(?:[/?#][^{_HIDDEN}]*)?$"

_MAX_HOST: Final = 253
"""Characters of a domain name."""


def explain(url: str) -> str:
    """Return what is wrong with a URL that does not match the pattern: "must not contain credentials"."""
    hidden = re.search(f"[{_HIDDEN}]", url)
    if hidden:
        if hidden[0] == " ":
            return "must not contain spaces, write %20"
        return f"must not contain invisible characters, here U+{ord(hidden[0]):04X}"
    scheme, _, rest = url.partition("://")
    if scheme.lower() != "https":
        return "must be an https URL"
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    if "@" in authority:
        return "must not contain credentials"
    parts = re.fullmatch(r"(\[.*\]|[^:\[]*)(?::(.*))?", authority)
    host, port = parts.groups() if parts else (authority, None)
    if not host:
        return "must have a host"
    if port is not None and not re.fullmatch(_PORT, port):
        return "must have a port from 1 to 65535, or none"
    return _explain_host(host)


def _explain_host(host: str) -> str:
    if len(host) > _MAX_HOST:
        return f"must have a host of at most {_MAX_HOST} characters"
    if not host.isascii():
        try:
            return f"must have its host in ASCII: write {idna.encode(host, uts46=True).decode()} for {host}"
        except idna.IDNAError:
            return f"must have a valid host: {host} is not a domain name"
    return f"must have a valid host: {_host_problem(host)}"


def _host_problem(host: str) -> str:
    if host.startswith("["):
        if "." in host:
            return f"{host} has an IPv4 address in it, write hexadecimal digits only"
        return f"{host} is not an IPv6 address"
    labels = host.removesuffix(".").split(".")
    for label in labels:
        if not label:
            return f"{host} has an empty part"
        if len(label) > 63:
            return f"{host} has a part of more than 63 characters"
        if not re.fullmatch(_LABEL, label):
            return f"{label} may have only letters, digits and inner hyphens"
    return f"{host} is not an IPv4 address"
