"""Several processes of one job: started, restarted when they die, stopped together."""

import ctypes
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from types import FrameType
from typing import Final

import structlog

from ingest.cli.exits import USAGE, exit_code

_PAUSE: Final = 1.0
"""Seconds before a process that died is started again."""

_log = structlog.get_logger(__name__)


def supervise(count: int, job: Callable[[], int], deadline: float) -> int:
    """Run `job` in `count` processes until SIGTERM or SIGINT; one runs right here.

    Args:
        count: processes.
        job: stops by itself at SIGTERM; returns an exit code.
        deadline: seconds that it may take for that.

    Returns:
        The exit code: 0 if all ended well.
    """
    return job() if count == 1 else _Supervisor(count, job, deadline).run()


class _Supervisor:
    def __init__(self, count: int, job: Callable[[], int], deadline: float) -> None:
        # Forked before any thread or event loop is there; what is configured and listening is shared.
        self._context = multiprocessing.get_context("fork")
        self._count = count
        self._job = job
        self._deadline = deadline
        self._children: list[multiprocessing.process.BaseProcess] = []
        self._stopping = False

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        self._children = [self._start() for _ in range(self._count)]
        while not self._stopping:
            wait([child.sentinel for child in self._children], timeout=0.5)
            for index, child in enumerate(self._children):
                if child.is_alive() or self._stopping:
                    continue
                if child.exitcode == USAGE:
                    self._stop()  # wrong settings do not get better
                    break
                _log.error("process died, starting another", pid=child.pid, exit_code=child.exitcode)
                time.sleep(_PAUSE)
                if not self._stopping:
                    self._children[index] = self._start()
        return self._end()

    def _start(self) -> multiprocessing.process.BaseProcess:
        child = self._context.Process(target=_child, args=(self._job, os.getpid()))
        child.start()
        return child

    def _stop(self, _: int = 0, __: FrameType | None = None) -> None:
        self._stopping = True
        for child in self._children:
            if child.is_alive():
                child.terminate()

    def _end(self) -> int:
        end = time.monotonic() + self._deadline + 5
        for child in self._children:
            child.join(max(0.0, end - time.monotonic()))
            if child.is_alive():
                _log.error("process does not stop, killed", pid=child.pid)
                child.kill()
                child.join()
        return max(abs(child.exitcode or 0) for child in self._children)


def _child(job: Callable[[], int], parent: int) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: no orphans when the parent is killed
    if os.getppid() == parent:
        sys.exit(exit_code(job))
