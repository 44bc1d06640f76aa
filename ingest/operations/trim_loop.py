"""Trims dead letters again and again, until the process is stopped."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from ingest.domain.errors import BrokerUnavailable
from ingest.waiting import wait_for_event

_log = structlog.get_logger(__name__)


async def trim_repeatedly(run: Callable[[], Coroutine[Any, Any, None]], every: float, stop: asyncio.Event) -> None:
    """Call `run` until `stop` is set, with a pause of `every` seconds after each; it is cancelled if it is in progress.

    An unavailable broker is logged, and `run` is called again. Other errors are raised.
    """
    while not stop.is_set():
        running, stopping = asyncio.create_task(run()), asyncio.create_task(stop.wait())
        try:
            await asyncio.wait([running, stopping], return_when=asyncio.FIRST_COMPLETED)
            running.cancel()  # has no effect if it has ended
            with contextlib.suppress(asyncio.CancelledError):
                await running
        except BrokerUnavailable as error:
            _log.warning("dead_letters_not_trimmed", error=str(error))
        finally:
            running.cancel()
            stopping.cancel()
        await wait_for_event(stop, every)
