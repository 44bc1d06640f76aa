"""Refunds charges of submissions that never became tasks, as long as the worker runs."""

import asyncio
from typing import Final

import structlog

from ingest.admission import Admission
from ingest.domain.errors import StoreUnavailable
from ingest.waiting import wait_for_event

INTERVAL: Final = 600.0
"""Seconds between two searches. Several workers may search at once: one of them refunds."""

_log = structlog.get_logger(__name__)


async def refund_doubts_regularly(admission: Admission, stopping: asyncio.Event, interval: float) -> None:
    """Call `refund_doubts` every `interval` seconds until the worker stops. An outage only delays it."""
    while not await wait_for_event(stopping, interval):
        try:
            await admission.refund_doubts()
        except StoreUnavailable as error:
            _log.warning("refund_of_doubts_failed", error=str(error))
