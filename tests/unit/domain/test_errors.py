"""What errors say."""

import asyncio

import pytest

from ingest.domain.errors import cause_of


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (None, "no answer in time"),
        (TimeoutError(), "no answer in time"),
        (ConnectionResetError(), "the other side closed the connection"),
        (asyncio.IncompleteReadError(b"", 7), "0 bytes read on a total of 7 expected bytes"),
        (StopAsyncIteration(), "the other side closed the connection"),
        (ConnectionRefusedError(111, "Connection refused"), "[Errno 111] Connection refused"),
        (RuntimeError("  "), "RuntimeError"),
    ],
)
def test_cause_is_never_empty(error: BaseException | None, cause: str) -> None:
    assert cause_of(error) == cause
