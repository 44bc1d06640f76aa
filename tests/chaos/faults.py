"""The registry of faults. Each injects, holds, heals and returns the proof that it happened."""

import importlib
from collections.abc import Awaitable, Callable
from typing import Final

from tests.chaos.world import World

Inject = Callable[[World], Awaitable[str]]

FAULTS: Final[dict[str, Inject]] = {}


class NotShown(Exception):
    """The fault did not happen, or cannot be proven; the message says what was seen."""


def fault(name: str) -> Callable[[Inject], Inject]:
    """Register under this name. The docstring is what `--list` shows."""

    def register(inject: Inject) -> Inject:
        FAULTS[name] = inject
        return inject

    return register


def need(shown: object, what: str) -> None:
    """Raises NotShown."""
    if not shown:
        raise NotShown(what)


def load() -> dict[str, Inject]:
    """All faults, by name."""
    for kind in ("process", "broker", "store", "network"):
        importlib.import_module(f"tests.chaos.faults_{kind}")
    return FAULTS
