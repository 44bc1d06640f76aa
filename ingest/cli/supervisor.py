"""Several processes of one job: started, restarted when they die, stopped together."""

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
"""Seconds before a process that died is started again."""

_log = structlog.get_logger(__name__)


Job = Callable[[], int]
"""Stops by itself at SIGTERM; returns an exit code."""


def supervise(
    jobs: Sequence[Job], deadline: float, beside: Job | None = None, died: Callable[[int], None] = lambda _: None
) -> int:
    """Run each job in a process of its own until SIGTERM or SIGINT; a single one runs right here.

    Args:
        jobs: what to run.
        deadline: seconds that a job may take to stop.
        beside: one more, which stops after all others have; not run beside a single one.
        died: told the position of each job whose process has died, before another is started.

    Returns:
        The exit code: 0 if all ended well.
    """
    return jobs[0]() if len(jobs) == 1 else _Supervisor(jobs, deadline, beside, died).run()


class _Supervisor:
    def __init__(self, jobs: Sequence[Job], deadline: float, beside: Job | None, died: Callable[[int], None]) -> None:
        # Forked before any thread or event loop is there; what is configured and listening is shared.
        self._context = multiprocessing.get_context("fork")
        self._jobs = [*jobs, beside] if beside is not None else [*jobs]
        self._count = len(jobs)
        self._deadline = deadline
        self._died = died
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
                    self._stop()  # wrong settings do not get better
                    break
                _log.error("process_died_restarting", pid=child.pid, exit_code=child.exitcode)
                if index < self._count:
                    self._died(index)
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
        _terminate(self._children[: self._count])  # a signal may have come while they were being started
        self._join(self._children[: self._count], end)
        _terminate(self._children[self._count :])
        self._join(self._children[self._count :], time.monotonic() + 5)
        # SIGTERM ends a process that had not begun yet; it was told to.
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
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: no orphans when the parent is killed
    if os.getppid() == parent:
        sys.exit(exit_code(job))
