"""The registry of faults. A fault injects trouble, waits, repairs it, and returns the proof that it happened."""

import importlib
from collections.abc import Awaitable, Callable
from typing import Final

from tests.chaos.world import World

Inject = Callable[[World], Awaitable[str]]

FAULTS: Final[dict[str, Inject]] = {}
NODES_NEEDED: Final[dict[str, int]] = {}
"""Fault to how many Aerospike nodes it needs."""
NEEDS_EARLIER_VERSION: Final[set[str]] = set()
"""The faults for which the processes must begin with an earlier version."""


class NotShown(Exception):
    """The fault did not happen or cannot be proven; the message says what was observed."""


def fault(name: str, *, aerospike_nodes: int = 1, earlier_version: bool = False) -> Callable[[Inject], Inject]:
    """Register a fault under this name. Its docstring is its description in `scripts/chaos --help`.

    It is injected only if there are so many Aerospike nodes, and an earlier version if it needs one.
    """

    def register(inject: Inject) -> Inject:
        FAULTS[name] = inject
        NODES_NEEDED[name] = aerospike_nodes
        if earlier_version:
            NEEDS_EARLIER_VERSION.add(name)
        return inject

    return register


def require(proven: object, observation: str) -> None:
    """Raise NotShown unless the fault is proven to have happened."""
    if not proven:
        raise NotShown(observation)


def load() -> dict[str, Inject]:
    """Import all faults; return them by name."""
    for kind in ("process", "broker", "store", "store_nodes", "network"):
        importlib.import_module(f"tests.chaos.faults_{kind}")
    return FAULTS
