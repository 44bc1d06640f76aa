"""A command that runs on a terminal of its own, as a person sees it."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self


class Terminal:
    """`ingest …` on a pseudo-terminal. The context manager kills it at the end.

    `elsewhere` is the stream that is not on the terminal, "stdout" or "stderr"; `file` has what is written to it.
    """

    def __init__(
        self, *arguments: str, directory: Path, env: Mapping[str, str] | None = None, elsewhere: str = ""
    ) -> None:
        self._screen, line = pty.openpty()
        self.text = ""
        self.file = directory / "elsewhere"
        with self.file.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ingest", *arguments],
                cwd=directory,
                env={**os.environ, "TERM": "xterm", "COLUMNS": "120", **(env or {})},
                stdin=line,
                stdout=file if elsewhere == "stdout" else line,
                stderr=file if elsewhere == "stderr" else line,
                start_new_session=True,
            )
        os.close(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._screen)

    def read(self, seconds: float) -> str:
        """Return what is written within `seconds`, or until the command ends."""
        new = b""
        end = time.monotonic() + seconds
        while (remaining := end - time.monotonic()) > 0:
            if not select.select([self._screen], [], [], remaining)[0]:
                break
            try:
                new += os.read(self._screen, 65_536)
            except OSError:  # the command has ended
                break
        self.text += new.decode()
        return new.decode()

    def wait_for(self, pattern: str, seconds: float = 30) -> None:
        """Wait until something was written that the regular expression matches."""
        end = time.monotonic() + seconds
        while not re.search(pattern, self.text):
            assert time.monotonic() < end, self.text
            self.read(0.1)

    def type(self, text: str) -> None:
        os.write(self._screen, text.encode())

    def interrupt(self) -> None:
        """Send what Ctrl-C sends."""
        self.process.send_signal(signal.SIGINT)

    def end(self, seconds: float = 15) -> int:
        """Read until the command ends; return its exit code."""
        self.read(seconds)
        return self.process.wait(seconds)
