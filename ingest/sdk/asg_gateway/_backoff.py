"""Pauses between attempts."""

import random
from collections.abc import Callable


def _jitter() -> float:
    return random.uniform(0.5, 1.5)  # noqa: S311 - not a secret


class Backoff:
    """Pauses in seconds that double from `first` to `longest`, each multiplied by `jitter()`."""

    def __init__(self, first: float, longest: float, jitter: Callable[[], float] = _jitter) -> None:
        self._first = self._pause = first
        self._longest = longest
        self._jitter = jitter

    def next(self) -> float:
        """Return the pause to make now."""
        pause = self._pause
        self._pause = min(pause * 2, self._longest)
        return pause * self._jitter()

    def reset(self) -> None:
        """Start again with the first pause."""
        self._pause = self._first
