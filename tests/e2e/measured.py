"""`python -m tests.e2e.measured serve --port PORT` or `work`: prints a line if the event loop is held for long."""

import asyncio
import re
import sys
from collections.abc import Awaitable, Callable
from typing import Final

from ingest import bootstrap, settings
from ingest.serving import listen
from ingest.telemetry import logs
from tests.support.loop_hold import LoopHold

_LONG: Final = 0.02


def longest_hold(log: str) -> float:
    """Return the longest hold in a log, in seconds; 0 if there was none above 20 ms."""
    return max(map(float, re.findall(r"^loop_held ([0-9.]+)$", log, re.MULTILINE)), default=0.0)


def _print(seconds: float) -> None:
    if seconds > _LONG:
        print(f"loop_held {seconds:.3f}", file=sys.stderr, flush=True)


def main(kind: str, *options: str) -> int:
    current = settings.load(port=options[1] if options else None)
    logs.configure(current.log_level, "json")
    run: Callable[[asyncio.Event], Awaitable[None]]
    if kind == "serve":
        listener = listen(current.host, current.port)

        async def run(stop: asyncio.Event) -> None:
            async with LoopHold(_print):
                await bootstrap.run_shim(current, listener, None, stop)
    else:

        async def run(stop: asyncio.Event) -> None:
            async with LoopHold(_print):
                await bootstrap.run_worker(current, None, stop)

    return bootstrap.run(run, current.shutdown_deadline)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
