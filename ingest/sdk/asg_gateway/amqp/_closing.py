"""Closes connections of aio-pika, whatever their state is."""

import asyncio
from typing import Final

from aio_pika.abc import AbstractConnection

from asg_gateway.amqp._cancellation import is_cancelled

_TIMEOUT: Final = 10.0
"""Seconds until a connection that does not answer is left as it is."""


async def closed(connection: AbstractConnection) -> None:
    """Send what was acknowledged, and close a connection. It may be lost already."""
    try:
        async with asyncio.timeout(_TIMEOUT):
            await connection.close()
    except (Exception, asyncio.CancelledError):
        if is_cancelled():
            raise
