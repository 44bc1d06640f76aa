"""Runs a test on an event loop with virtual time: the timers of the loop fire without a wait."""

import functools
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec

from tests.simulation.loop import SimulatedLoop

P = ParamSpec("P")


def in_virtual_time(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Make a test run in virtual time. It cannot use asynchronous fixtures or I/O."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        SimulatedLoop().run(test(*args, **kwargs))

    return run
