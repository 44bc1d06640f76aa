"""Decides by the confirms of a channel whether it must be replaced."""

from typing import Final

_NACKED_FOR: Final = 15.0
"""Seconds of nacks without a single ack, see `versions`."""
_NACKED_IN_ALL: Final = 600.0
"""The same for nacks among acks: another queue may confirm while one is full."""
_UNANSWERED_FOR: Final = 10.0
"""Seconds without any answer. A node that is separated from the other nodes of its cluster keeps its connections, but
confirms nothing; another node of the URL may."""


class ConfirmHealth:
    """The acks and nacks of one channel. All times are seconds of the loop's clock."""

    def __init__(self) -> None:
        self._first_nack: float | None = None
        self._nacked_since: float | None = None
        self._last_nack = 0.0
        self._waiting_since = 0.0

    def waits(self, now: float) -> None:
        """Record that the channel waits for an answer from now on."""
        self._waiting_since = now

    def acked(self, now: float) -> None:
        self._nacked_since = None
        self._waiting_since = now

    def nacked(self, now: float) -> None:
        self._last_nack = self._waiting_since = now
        self._nacked_since = now if self._nacked_since is None else self._nacked_since
        self._first_nack = now if self._first_nack is None else self._first_nack

    def problem(self, now: float, *, pending: bool) -> str | None:
        """Return why the channel must be replaced, as the name of a log event; None if it is well.

        `pending` says whether messages wait for an answer.
        """
        if pending and now - self._waiting_since >= _UNANSWERED_FOR:
            return "confirms_missing_reconnecting"
        if self._first_nack is None:
            return None
        without_ack = self._nacked_since is not None and self._last_nack - self._nacked_since >= _NACKED_FOR
        if without_ack or self._last_nack - self._first_nack >= _NACKED_IN_ALL:
            return "persistent_nacks_reconnecting"
        return None
