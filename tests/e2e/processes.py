"""Real `ingest` processes for end-to-end tests."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import httpx

from tests.servers.process import wait_until


class Ingest:
    """One running `ingest …` command that writes its output to a file. The context manager kills it at the end.

    `module` is the Python module to run, with the same arguments.
    """

    def __init__(
        self, *arguments: str, directory: Path, env: Mapping[str, str] | None = None, module: str = "ingest"
    ) -> None:
        self.output = directory / f"{arguments[0]}-{time.monotonic_ns()}.log"
        clean = {name: value for name, value in os.environ.items() if not name.startswith("INGEST_")}
        with self.output.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=directory,
                # On a default port, `ingest dev` would disturb what else runs on the machine.
                env={"INGEST_CONSOLE_PORT": "0", **clean, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )

    def __enter__(self) -> "Ingest":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def text(self) -> str:
        return self.output.read_text()

    def wait_for(self, text: str, seconds: float = 20) -> None:
        """Wait until the process has printed `text`; fail if it ends before."""

        def printed() -> bool:
            assert self.process.poll() is None, self.text()
            return text in self.text()

        wait_until(printed, f"{text!r} of {self.output.name}", seconds)

    def stop(self, seconds: float = 15) -> int:
        """Send SIGTERM, wait, and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)


def run_ingest(*arguments: str, env: Mapping[str, str], directory: Path) -> subprocess.CompletedProcess[str]:
    """Run a command that ends by itself and return its output and exit code."""
    return subprocess.run(
        [sys.executable, "-m", "ingest", *arguments],
        cwd=directory,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def wait_ready(url: str) -> None:
    """Wait until `/readyz` answers 200."""
    wait_until(lambda: httpx.get(f"{url}/readyz", timeout=5).status_code == 200, url, 30)
