"""Closes connections and channels of aio-pika, whatever their state is."""

import asyncio
from collections.abc import Awaitable
from typing import Final

from asg_gateway.amqp._cancellation import is_cancelled

_TIMEOUT: Final = 10.0
"""Seconds until a connection that does not answer is left as it is."""


async def closed(closing: Awaitable[object], seconds: float = _TIMEOUT) -> None:
    """Await a close, which first sends what was acknowledged. What it closes may be lost or blocked already."""
    try:
        async with asyncio.timeout(seconds):
            await closing
    except (Exception, asyncio.CancelledError):
        if is_cancelled():
            raise
