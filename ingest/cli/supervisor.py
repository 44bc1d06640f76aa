"""Runs jobs in processes: starts them, restarts those that die, stops them together."""

import ctypes
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from types import FrameType
from typing import Final

import structlog

from ingest.cli.exits import USAGE, exit_code

_PAUSE: Final = 1.0
"""Seconds before a process that died is restarted."""

_log = structlog.get_logger(__name__)


Job = Callable[[], int]
"""Returns an exit code; it must stop by itself at SIGTERM."""


def supervise(
    jobs: Sequence[Job], deadline: float, companion: Job | None = None, on_death: Callable[[int], None] = lambda _: None
) -> int:
    """Run each job in its own process until SIGTERM or SIGINT. A single job runs in this process.

    Args:
        jobs: the jobs.
        deadline: seconds that a job may take to stop.
        companion: a further job that stops after all others; not run with a single job.
        on_death: called with the index of a job whose process died, before the restart.

    Returns:
        The exit code: 0 if every process succeeded.
    """
    return jobs[0]() if len(jobs) == 1 else _Supervisor(jobs, deadline, companion, on_death).run()


class _Supervisor:
    def __init__(
        self, jobs: Sequence[Job], deadline: float, companion: Job | None, on_death: Callable[[int], None]
    ) -> None:
        # The processes are forked before any thread or event loop exists; they share configuration and listening
        # sockets.
        self._context = multiprocessing.get_context("fork")
        self._jobs = [*jobs, companion] if companion is not None else [*jobs]
        self._count = len(jobs)
        self._deadline = deadline
        self._on_death = on_death
        self._children: list[multiprocessing.process.BaseProcess] = []
        self._stopping = False

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        self._children = [self._start(job) for job in self._jobs]
        while not self._stopping:
            wait([child.sentinel for child in self._children], timeout=0.5)
            for index, child in enumerate(self._children):
                if child.is_alive() or self._stopping:
                    continue
                if child.exitcode == USAGE:
                    self._stop()  # a restart does not correct the settings
                    break
                _log.error("process_died_restarting", pid=child.pid, exit_code=child.exitcode)
                if index < self._count:
                    self._on_death(index)
                time.sleep(_PAUSE)
                if not self._stopping:
                    self._children[index] = self._start(self._jobs[index])
        return self._end()

    def _start(self, job: Job) -> multiprocessing.process.BaseProcess:
        child = self._context.Process(target=_child, args=(job, os.getpid()))
        child.start()
        return child

    def _stop(self, _: int = 0, __: FrameType | None = None) -> None:
        self._stopping = True
        _terminate(self._children[: self._count])

    def _end(self) -> int:
        end = time.monotonic() + self._deadline + 5
        _terminate(self._children[: self._count])  # a signal may have arrived while they were starting
        self._join(self._children[: self._count], end)
        _terminate(self._children[self._count :])
        self._join(self._children[self._count :], time.monotonic() + 5)
        # A process that had not started its job yet ends with SIGTERM, as it should.
        codes = [child.exitcode or 0 for child in self._children]
        return max(abs(code) if code != -signal.SIGTERM else 0 for code in codes)

    def _join(self, children: Sequence[multiprocessing.process.BaseProcess], end: float) -> None:
        for child in children:
            child.join(max(0.0, end - time.monotonic()))
            if child.is_alive():
                _log.error("process_killed_after_deadline", pid=child.pid)
                child.kill()
                child.join()


def _terminate(children: Sequence[multiprocessing.process.BaseProcess]) -> None:
    for child in children:
        if child.is_alive():
            child.terminate()


def _child(job: Job, parent: int) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: if the parent is killed, the children stop
    if os.getppid() == parent:
        sys.exit(exit_code(job))
