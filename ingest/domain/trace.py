"""W3C Trace Context (https://www.w3.org/TR/trace-context), passed from the client's request to the events.

This needs no tracing library and costs nothing without a `traceparent`, so it is always on: a client's trace continues
through the service. An invalid context is ignored, as the specification requires.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"

_IDS: Final = "(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
# Higher versions may have more fields at the end; only the fields of this version are passed on.
_TRACEPARENT: Final = re.compile(rf"00-({_IDS})|(?!00|ff)[0-9a-f]{{2}}-({_IDS})(?:-.*)?", re.DOTALL)
_TRACESTATE: Final = re.compile(r"[\x20-\x7e]{1,512}")

_encode = msgspec.json.encode


class Trace(msgspec.Struct, frozen=True, gc=False):
    """A valid trace context; `tracestate` may be empty."""

    traceparent: str
    tracestate: str = ""

    @property
    def trace_id(self) -> str:
        """The id of the whole trace, 32 hex digits."""
        return self.traceparent[3:35]

    def headers(self) -> dict[str, Any]:
        """Return the context as headers of an AMQP message."""
        named = {TRACEPARENT: self.traceparent}
        return named | {TRACESTATE: self.tracestate} if self.tracestate else named

    def json_members(self) -> bytes:
        """Return the context as members of a JSON object, with a comma after each."""
        state = b'"tracestate":%b,' % _encode(self.tracestate) if self.tracestate else b""
        return b'"traceparent":"%b",%b' % (self.traceparent.encode(), state)


def trace_of(headers: Mapping[str, Any]) -> Trace | None:
    """Return the context in the headers of an AMQP message; None if there is no valid one."""
    traceparent = headers.get(TRACEPARENT)
    return None if traceparent is None else _valid(traceparent, headers.get(TRACESTATE))


def trace_of_http(headers: Mapping[bytes, bytes]) -> Trace | None:
    """Return the context in the headers of an HTTP request (names in lower case); None if there is no valid one."""
    traceparent = headers.get(b"traceparent")
    if traceparent is None:
        return None
    return _valid(traceparent.decode("latin-1"), headers.get(b"tracestate", b"").decode("latin-1"))


def _valid(traceparent: object, tracestate: object) -> Trace | None:
    match = _TRACEPARENT.fullmatch(traceparent) if isinstance(traceparent, str) else None
    if match is None:
        return None
    state = tracestate if isinstance(tracestate, str) and _TRACESTATE.fullmatch(tracestate) else ""
    return Trace(f"00-{match[1] or match[2]}", state)
