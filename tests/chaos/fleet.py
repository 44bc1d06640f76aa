"""The processes under test, and an init that starts again what was killed on purpose."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tests.servers.process import _die_with_parent

_RESTART: Final = 0.5


class Process:
    """One `serve` or `work`. `deaths` lists those that nobody has asked for."""

    def __init__(self, kind: str, name: str, directory: Path, env: Mapping[str, str]) -> None:
        self.kind = kind
        self.name = name
        self.log = directory / f"{name}.log"
        self.deaths: list[str] = []
        self.restarts = 0
        self.peak = 0
        self._directory = directory
        clean = {key: value for key, value in os.environ.items() if not key.startswith("INGEST_")}
        self._env = {**clean, **env, "CHAOS_DIRECTORY": str(directory)}
        self._doomed = False
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._popen is not None
        return self._popen.pid

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.entry", self.kind, self.name],
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_parent,
            )
        self._doomed = False

    async def keep_running(self) -> None:
        """Start it again whenever it has ended, as systemd or Kubernetes would."""
        while True:
            code = await asyncio.to_thread(self._wait)
            if code is None:
                self._note_memory()
                continue
            if not self._doomed:
                self.deaths.append(f"{self.name} ended by itself with {code}")
            await asyncio.sleep(_RESTART)
            self.restarts += 1
            self.start()

    async def killed_at(self, point: str, seconds: float) -> dict[str, Any] | None:
        """Arm a kill point and wait until the process has died there; its proof, None where it did not."""
        proof = self._directory / f"{self.name}.killed"
        proof.unlink(missing_ok=True)
        self._doomed = True
        arm = self._directory / f"{self.name}.arm"
        arm.write_text(point)
        end = time.monotonic() + seconds
        while not proof.exists():
            if time.monotonic() > end:
                arm.unlink(missing_ok=True)
                self._doomed = False
                return None
            await asyncio.sleep(0.05)
        found: dict[str, Any] = json.loads(proof.read_text())
        return found

    async def terminate(self, seconds: float = 30.0) -> tuple[int, dict[str, int]]:
        """SIGTERM; the exit code, and what each consumer had left unacknowledged when it closed."""
        assert self._popen is not None
        popen = self._popen
        self._doomed = True
        for old in self._directory.glob(f"{self.name}.closed-*"):
            old.unlink()
        popen.send_signal(signal.SIGTERM)
        end = time.monotonic() + seconds
        while popen.poll() is None:
            assert time.monotonic() < end, f"{self.name} does not stop"
            await asyncio.sleep(0.05)
        left = {
            path.name.partition("closed-")[2]: json.loads(path.read_text())["unacknowledged"]
            for path in self._directory.glob(f"{self.name}.closed-*")
        }
        return popen.returncode, left

    def lines(self, text: str) -> int:
        """How many lines of its log have `text`."""
        return self.log.read_text(errors="replace").count(text)

    def kill(self) -> None:
        if self._popen is not None:
            self._doomed = True
            self._popen.kill()
            self._popen.wait()

    def _wait(self) -> int | None:
        assert self._popen is not None
        try:
            return self._popen.wait(1.0)
        except subprocess.TimeoutExpired:
            return None

    def _note_memory(self) -> None:
        try:
            status = Path(f"/proc/{self.pid}/status").read_text()
        except OSError:
            return
        for line in status.splitlines():
            if line.startswith("VmRSS:"):
                self.peak = max(self.peak, int(line.split()[1]) // 1024)
