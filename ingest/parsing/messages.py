"""Requests to the child process and its answers."""

import traceback

import msgspec

from ingest.domain.errors import FieldError, InvalidSubmission, Reason, UnregisteredWebhook
from ingest.domain.parsing import Unparsed, parse
from ingest.domain.submissions import Submission

LENGTH_BYTES = 4
"""A message begins with its length, a big-endian number of this many bytes."""


class _Parsed(msgspec.Struct, tag="parsed"):
    submission: Submission


class _Invalid(msgspec.Struct, tag="invalid"):
    reason: Reason
    message: str
    errors: tuple[FieldError, ...]
    unregistered_webhook: bool


class _Defect(msgspec.Struct, tag="defect"):
    traceback: str


_Answer = _Parsed | _Invalid | _Defect
_decode_request = msgspec.msgpack.Decoder(Unparsed).decode
# JSON, because tasks contain their canonical JSON as it is.
_decode_answer = msgspec.json.Decoder(_Answer).decode


def framed(message: bytes) -> tuple[bytes, bytes]:
    """Return the parts to send for a message."""
    return len(message).to_bytes(LENGTH_BYTES), message


def request(unparsed: Unparsed) -> bytes:
    """Return the message that asks for a body to be parsed."""
    return msgspec.msgpack.encode(unparsed)


def answer(message: bytes) -> bytes:
    """Parse the body in a request; return the answer."""
    return msgspec.json.encode(_answer(message))


def submission(message: bytes) -> Submission:
    """Return the submission in an answer.

    Raises:
        InvalidSubmission: as `parse` raised it.
        RuntimeError: `parse` has a defect; the message has its traceback.
    """
    result = _decode_answer(message)
    if isinstance(result, _Parsed):
        return result.submission
    if isinstance(result, _Invalid):
        kind = UnregisteredWebhook if result.unregistered_webhook else InvalidSubmission
        raise kind(result.reason, result.message, result.errors)
    raise RuntimeError(result.traceback)


def _answer(message: bytes) -> _Answer:
    try:
        return _Parsed(parse(_decode_request(message)))
    except InvalidSubmission as error:
        return _Invalid(error.reason, error.message, error.errors, isinstance(error, UnregisteredWebhook))
    except Exception:  # noqa: BLE001 - the parent raises it
        return _Defect(traceback.format_exc())
