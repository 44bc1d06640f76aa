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


def longest_holds(log: str) -> tuple[float, float]:
    """Return the two longest holds in a log, in seconds; 0 where there was none above 20 ms.

    What the service does for an input, it does for each such input. A hold that occurs once may be the machine's.
    """
    holds = map(float, re.findall(r"^loop_held ([0-9.]+)$", log, re.MULTILINE))
    longest, second, *_ = sorted([*holds, 0.0, 0.0], reverse=True)
    return longest, second


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
