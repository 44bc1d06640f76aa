"""Runs `ingest serve` or `ingest work` with probes around the ports: `python -m tests.chaos.entry serve|work NAME`.

CHAOS_DIRECTORY is the directory of the harness; `INGEST_*` are the settings as usual. On SIGUSR1 the process prints the
stack of each of its asyncio tasks.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

from ingest import bootstrap, settings
from ingest.serving import listen
from ingest.telemetry import logs
from tests.chaos.probes import Probes


def main(kind: str, name: str) -> int:
    current = settings.load(log_format="json")
    logs.configure(current.log_level, current.log_format)
    signal.signal(signal.SIGUSR1, lambda *_: _print_tasks())
    decorate = Probes(Path(os.environ["CHAOS_DIRECTORY"]), name).decorate
    if kind == "serve":
        listener = listen(current.host, current.port)
        return bootstrap.run(
            lambda stop: bootstrap.run_shim(current, listener, None, stop, decorate=decorate), current.shutdown_deadline
        )
    return bootstrap.run(
        lambda stop: bootstrap.run_worker(current, None, stop, decorate=decorate), current.shutdown_deadline
    )


def _print_tasks() -> None:
    for task in asyncio.all_tasks():
        task.print_stack()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
