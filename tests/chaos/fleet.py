"""The processes under test. A supervisor restarts each of them when it has ended."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tests.servers.process import _die_with_parent

ROOT: Final = Path(__file__).parents[2]
"""The directory of this checkout."""
_RESTART: Final = 0.5


class Process:
    """One `serve` or `work` process. `unexpected_exits` has a sentence for each exit that the harness did not cause.

    `source` is the checkout whose code it runs from its next start on.
    """

    def __init__(self, kind: str, name: str, directory: Path, env: Mapping[str, str], source: Path = ROOT) -> None:
        self.kind = kind
        self.name = name
        self.source = source
        self.log = directory / f"{name}.log"
        self.unexpected_exits: list[str] = []
        self.restarts = 0
        self.peak_memory = 0
        self._directory = directory
        clean = {key: value for key, value in os.environ.items() if not key.startswith("INGEST_")}
        self._env = {**clean, **env, "CHAOS_DIRECTORY": str(directory)}
        self._exit_expected = False
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._popen is not None
        return self._popen.pid

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.entry", self.kind, self.name],
                cwd=self.source,
                env=self._env | {"PYTHONPATH": str(self.source)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_parent,
            )
        self._exit_expected = False

    async def keep_running(self) -> None:
        """Restart the process whenever it has ended, as systemd or Kubernetes would."""
        while True:
            code = await asyncio.to_thread(self._wait)
            if code is None:
                self._record_memory()
                continue
            if not self._exit_expected:
                self.unexpected_exits.append(f"{self.name} ended by itself with {code}")
            await asyncio.sleep(_RESTART)
            self.restarts += 1
            self.start()

    async def killed_at(self, point: str, seconds: float) -> dict[str, Any] | None:
        """Arm a kill point; return the proof that the process killed itself there, or None if it did not reach it."""
        proof = self._directory / f"{self.name}.killed"
        proof.unlink(missing_ok=True)
        self._exit_expected = True
        arm = self._directory / f"{self.name}.arm"
        arm.write_text(point)
        end = time.monotonic() + seconds
        while not proof.exists():
            if time.monotonic() > end:
                arm.unlink(missing_ok=True)
                self._exit_expected = False
                return None
            await asyncio.sleep(0.05)
        content: dict[str, Any] = json.loads(proof.read_text())
        return content

    async def terminate(self, seconds: float = 30.0) -> tuple[int, dict[str, int]]:
        """Send SIGTERM; return the exit code and, by queue, how many deliveries were unacknowledged at the end."""
        assert self._popen is not None
        popen = self._popen
        self._exit_expected = True
        for path in self._directory.glob(f"{self.name}.closed-*"):
            path.unlink()
        popen.send_signal(signal.SIGTERM)
        end = time.monotonic() + seconds
        while popen.poll() is None:
            assert time.monotonic() < end, f"{self.name} does not stop"
            await asyncio.sleep(0.05)
        unacknowledged = {
            path.name.partition("closed-")[2]: json.loads(path.read_text())["unacknowledged"]
            for path in self._directory.glob(f"{self.name}.closed-*")
        }
        return popen.returncode, unacknowledged

    @property
    def is_up(self) -> bool:
        """Whether the process runs and has logged that it is ready."""
        return self._popen is not None and self._popen.poll() is None and self.starts > self.restarts

    @property
    def starts(self) -> int:
        """How often the process logged that it is ready."""
        return self.count_events("serving" if self.kind == "serve" else "worker_started")

    def count_in_log(self, text: str) -> int:
        """Return how often `text` occurs in the log."""
        return self.log.read_text(errors="replace").count(text)

    def count_events(self, event: str) -> int:
        """Return how often the log has an entry with this `event`."""
        return len(re.findall(rf'"event": ?"{event}"', self.log.read_text(errors="replace")))

    def kill(self) -> None:
        if self._popen is not None:
            self._exit_expected = True
            self._popen.kill()
            self._popen.wait()

    def _wait(self) -> int | None:
        """Wait up to a second for the exit code; return None if the process still runs."""
        assert self._popen is not None
        try:
            return self._popen.wait(1.0)
        except subprocess.TimeoutExpired:
            return None

    def _record_memory(self) -> None:
        """Update `peak_memory`, in MiB."""
        try:
            status = Path(f"/proc/{self.pid}/status").read_text()
        except OSError:
            return
        for line in status.splitlines():
            if line.startswith("VmRSS:"):
                self.peak_memory = max(self.peak_memory, int(line.split()[1]) // 1024)
