"""The parent's side of the child process that parses large bodies.

It is a process and not a thread, because msgspec, pydantic and `re` hold the interpreter's lock while they work. It is
not a `ProcessPoolExecutor`: that one cannot end a child that hangs (before Python 3.14), imports the whole service into
its children, and pickles in a thread of the parent.
"""

import asyncio
import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import structlog

from ingest.domain.errors import ParserFailed
from ingest.parsing.messages import LENGTH_BYTES, framed

TIME_LIMIT: Final = 10.0
"""Seconds for one body, a start of the child process included. The slowest one takes less than one."""
_COMMAND: Final = (sys.executable, "-P", "-m", "ingest.parsing.child")
_EXIT: Final = 1.0
"""Seconds between the last that is heard of a child process and its exit code."""
_BUFFER: Final = 1024 * 1024
"""Bytes of an answer that are read ahead."""

_log = structlog.get_logger(__name__)


class ParserProcess:
    """One child process. It starts with the first request, and again after it has died.

    Args:
        time_limit: seconds that one request may take; then the child is killed.
        command: the program; tests pass others.
    """

    def __init__(self, time_limit: float = TIME_LIMIT, command: Sequence[str] = _COMMAND) -> None:
        self._time_limit = time_limit
        self._command = command
        self._child: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """The id of the child process; None if there is none."""
        return self._child.pid if self._child is not None else None

    async def ask(self, request: bytes) -> bytes:
        """Return the child's answer. One call at a time.

        Raises:
            ParserFailed: the child died or took too long. It is replaced by the next call.
        """
        if self._child is not None:
            try:
                return await self._ask(self._child, request)
            except _Died:
                _log.warning("parser_restarting")  # it may have been killed while it was idle
        child = await self._start()
        try:
            return await self._ask(child, request)
        except _Died as died:
            raise ParserFailed(f"the process that parses large bodies died: {died}") from None

    async def close(self) -> None:
        """Kill the child process."""
        child, self._child = self._child, None
        if child is not None:
            if child.returncode is None:
                with contextlib.suppress(ProcessLookupError):  # it has just ended
                    child.kill()
            await child.wait()

    async def _start(self) -> asyncio.subprocess.Process:
        # The child finds the modules where this process found them.
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([path or str(Path.cwd()) for path in sys.path])}
        pipe = asyncio.subprocess.PIPE
        try:
            child = await asyncio.create_subprocess_exec(
                *self._command, stdin=pipe, stdout=pipe, env=env, limit=_BUFFER
            )
        except OSError as error:
            raise ParserFailed(f"the process that parses large bodies cannot be started: {error}") from error
        _log.info("parser_started", pid=child.pid)
        self._child = child
        return child

    async def _ask(self, child: asyncio.subprocess.Process, request: bytes) -> bytes:
        """Raise _Died if the child dies, and ParserFailed if it takes too long."""
        answered = False
        try:
            async with asyncio.timeout(self._time_limit):
                answer = await _exchange(child, request)
                answered = True
                return answer
        except TimeoutError:
            _log.error("parser_killed", pid=child.pid, seconds=self._time_limit)
            raise ParserFailed(f"parsing the body took more than {self._time_limit:g} s") from None
        except (OSError, RuntimeError, asyncio.IncompleteReadError):  # RuntimeError: uvloop, if the pipe is closed
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_EXIT):
                    await child.wait()
            _log.error("parser_died", pid=child.pid, exit_code=child.returncode)
            raise _Died(f"exit code {child.returncode}") from None
        finally:
            if not answered:  # also if this task is cancelled: an answer would be taken for the next one's
                await self.close()


class _Died(Exception):
    """The child process died."""


async def _exchange(child: asyncio.subprocess.Process, request: bytes) -> bytes:
    requests, answers = child.stdin, child.stdout
    if requests is None or answers is None:
        raise ConnectionError("the child process has no pipes")
    for part in framed(request):
        requests.write(part)
    await requests.drain()
    length = int.from_bytes(await answers.readexactly(LENGTH_BYTES))
    return await answers.readexactly(length)
