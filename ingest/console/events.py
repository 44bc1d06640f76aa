"""The page of events. Only the console of `ingest dev` has it, because it runs in the process that publishes them."""

from typing import Any, Final

import msgspec

from ingest.domain.display import indented, json_text, redacted, shown_lines
from ingest.domain.events import rfc3339
from ingest.telemetry.recent_events import RecentEvent, RecentEvents
from ingest.waiting import TimeSlices

REFRESH: Final = 5
"""Seconds after which a browser loads the page again. It can be paused, as WCAG 2.2.1 and 2.2.2 ask."""


class Events:
    """The events of this process.

    Args:
        recent: the latest events.
        example: a command that submits a task, without an API key; it is shown while there are no events.
    """

    def __init__(self, recent: RecentEvents, example: str) -> None:
        self._recent = recent
        self._example = example

    async def fields(self, *, paused: bool) -> dict[str, Any]:
        """Return what the template needs; the JSON of each event is without secrets."""
        slices = TimeSlices()  # many large events take longer than the event loop may be held
        events = []
        for event in self._recent.latest():
            events.append({"event": event, "at": rfc3339(int(event.at * 1000)), "json": _json(event)})
            await slices.between()
        return {
            "events": events,
            "count": self._recent.count,
            "example": self._example,
            "paused": paused,
            "refresh": REFRESH,
        }


def _json(event: RecentEvent) -> str | None:
    """Return the CloudEvent with an indent, without secrets and control characters; None if it is not kept."""
    if event.body is None:
        return None
    return shown_lines(indented(json_text(redacted(msgspec.json.decode(event.body)))))
