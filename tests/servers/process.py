"""What the private servers share: free ports, a process of its own session, and a sure end."""

import atexit
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

START = 60.0
"""Seconds a server may take to start."""


class Unavailable(Exception):
    """The server cannot be had here; the message says why."""


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that are free now."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def docker_answers() -> bool:
    """Whether a Docker engine is there."""
    if shutil.which("docker") is None:
        return False
    try:
        return subprocess.run(["docker", "info"], capture_output=True, timeout=10, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def wait_until(ready: Callable[[], object], what: str, seconds: float = START) -> None:
    """Poll until `ready` neither raises nor returns False."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if ready() is not False:
                return
            why = "not ready"
        except Exception as error:  # noqa: BLE001 - whatever a server that starts may do
            why = str(error)
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not start within {seconds} s: {why}")
        time.sleep(0.05)


class PrivateServer:
    """A server process in a directory of its own. Its children share its session and end with it."""

    def __init__(self, name: str) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix=f"ingest-{name}-"))
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.stop)

    def launch(self, command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        with (self.directory / "output").open("ab") as output:
            self._process = subprocess.Popen(
                command,
                env={**os.environ, **(env or {})},
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def group(self) -> int:
        """The process group of server and children; 0 where it does not run."""
        return self._process.pid if self._process is not None else 0

    @property
    def ended(self) -> bool:
        """Whether it has ended by itself."""
        return self._process is not None and self._process.poll() is not None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the server and its children."""
        if self._process is not None:
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:
                return

    def kill(self) -> None:
        """End it as a power cut would."""
        self.signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait(timeout=10)
            self._process = None

    def stop(self) -> None:
        """Kill it and remove its directory; twice is fine."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)
        atexit.unregister(self.stop)


def port_mapper(port: int) -> PrivateServer:
    """epmd, by which Erlang nodes find one another. The one that RabbitMQ starts where it finds none is a daemon, and
    outlives it."""
    mapper = PrivateServer("epmd")
    mapper.launch(["epmd", "-port", str(port), "-address", "127.0.0.1"])
    return mapper


class Server:
    """What serves: a URL given, a container, or a private process, which alone can be killed and paused."""

    def __init__(self) -> None:
        self._container: Any = None
        self._process: PrivateServer | None = None

    @property
    def controllable(self) -> bool:
        """Whether it can be killed and paused."""
        return self._process is not None

    @property
    def pid(self) -> int | None:
        """None where it is not ours."""
        return self._process.pid if self._process is not None else None

    def kill(self) -> None:
        """End it as a power cut would."""
        assert self._process is not None
        self._process.kill()

    def pause(self) -> None:
        """It neither answers nor closes its connections."""
        assert self._process is not None
        self._process.signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.signal(signal.SIGCONT)

    def stop(self) -> None:
        """Stop what was started here."""
        if self._process is not None:
            self._process.stop()
        if self._container is not None:
            self._container.stop()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
