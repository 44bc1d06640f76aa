"""Shared parts of the servers: free ports, and processes in their own session that end with the tests."""

import atexit
import contextlib
import ctypes
import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_FIRST_PORT, _LAST_PORT = 26_000, 32_000
_RANGES = 8
_PAUSES = 15
_PAUSE = 2.0
"""Seconds in which a server must stop before it is tried again."""
START = 60.0
"""Seconds that a server may take to start."""


class Unavailable(Exception):
    """The server cannot be started on this machine; the message says why."""


def _port_numbers() -> Iterator[int]:
    """Yield ports from a random one on, below those that Linux gives to outgoing connections.

    Each worker process of xdist has a range of its own.
    """
    size = (_LAST_PORT - _FIRST_PORT) // _RANGES
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _RANGES
    ports = range(_FIRST_PORT + number * size, _FIRST_PORT + (number + 1) * size)
    start = random.randrange(size)
    return itertools.cycle((*ports[start:], *ports[:start]))


_ports = _port_numbers()


def free_ports(count: int) -> list[int]:
    """Return ports of the loopback interface that are free now; none is returned twice soon."""
    free: list[int] = []
    while len(free) < count:
        port = next(_ports)
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            free.append(port)
    return free


def wait_until(
    ready: Callable[[], object], name: str, seconds: float = START, ended: Callable[[], bool] = lambda: False
) -> None:
    """Poll until `ready` neither raises nor returns False.

    Raises:
        RuntimeError: the server has ended.
        TimeoutError: it was not ready in time. Both name the server.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            if ready() is not False:
                return
            why = "not ready"
        except Exception as error:  # noqa: BLE001 - a server that starts may cause any error
            why = str(error)
        if ended():
            raise RuntimeError(f"{name} ended before it was ready: {why}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"{name} did not start within {seconds} s: {why}")
        time.sleep(0.05)


class PrivateServer:
    """A server process in its own temporary directory. Its children share its session and end with it."""

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
        """The process group of the server and its children; 0 if the server does not run."""
        return self._process.pid if self._process is not None else 0

    @property
    def ended(self) -> bool:
        """Whether the process has ended without `kill` or `stop`."""
        return self._process is not None and self._process.poll() is not None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the server and its children."""
        if self._process is not None:
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:
                return

    def is_stopped(self) -> bool:
        """Return whether every thread of the server and of its children is stopped; that takes some milliseconds."""
        return set(self._states()) == {"T"}

    def _states(self) -> Iterator[str]:
        """Yield the state of each thread of the process group, as in proc(5); not of processes that have ended."""
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.getpgid(int(process.name)) == self.group:
                    states = [path.read_text().rpartition(") ")[2][0] for path in process.glob("task/*/stat")]
                    yield from (state for state in states if state not in "ZX")

    def kill(self) -> None:
        """End the server without warning, with SIGKILL."""
        self.signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait(timeout=10)
            self._process = None

    def end(self, seconds: float) -> int:
        """End the server with SIGTERM; return its exit code. Raises TimeoutExpired."""
        assert self._process is not None
        self.signal(signal.SIGTERM)
        code = self._process.wait(timeout=seconds)
        self._process = None
        return code

    def stop(self) -> None:
        """Kill the process and remove its directory. A second call has no effect."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)
        atexit.unregister(self.stop)


def port_mapper(program: str, port: int) -> PrivateServer:
    """Start epmd (`program`), with which Erlang nodes find each other.

    Otherwise RabbitMQ starts epmd as a daemon, which would still run after the tests.
    """
    mapper = PrivateServer("epmd")
    mapper.launch([program, "-port", str(port), "-address", "127.0.0.1"])
    return mapper


class Server:
    """A server at a given URL, in a container, or in a private process. Only the last can be killed and paused."""

    def __init__(self) -> None:
        self._container: Any = None
        self._process: PrivateServer | None = None

    @property
    def controllable(self) -> bool:
        """Whether the server can be killed and paused."""
        return self._process is not None

    @property
    def pid(self) -> int | None:
        """The process id; None if the server does not run in a private process."""
        return self._process.pid if self._process is not None else None

    def start_container(self, container: Any, ready: Callable[[], object], name: str, seconds: float = START) -> None:
        """Start a container and wait until it is ready. Raises RuntimeError, TimeoutError; then it is removed."""
        self._container = container
        atexit.register(self.stop)
        try:
            container.start()
            wait_until(ready, name, seconds, self._container_ended)
        except BaseException:
            self.stop()
            raise

    def _container_ended(self) -> bool:
        self._container.reload()
        return self._container.status in ("exited", "dead")

    def kill(self) -> None:
        """End the server without warning, with SIGKILL."""
        assert self._process is not None
        self._process.kill()

    def pause(self) -> None:
        """Stop the process, so that it neither answers nor closes its connections. Returns when it has stopped.

        A thread that is starting a program waits for it in the kernel, and cannot stop if the program is stopped first.
        """
        assert self._process is not None
        for attempt in range(_PAUSES):
            self._process.signal(signal.SIGSTOP)
            try:
                wait_until(self._process.is_stopped, "the pause of a server", _PAUSE)
            except TimeoutError:
                self._process.signal(signal.SIGCONT)
                if attempt == _PAUSES - 1:
                    raise
            else:
                return

    def resume(self) -> None:
        assert self._process is not None
        self._process.signal(signal.SIGCONT)

    def stop(self) -> None:
        """Stop the process or the container that was started here."""
        if self._process is not None:
            self._process.stop()
        if self._container is not None:
            self._container.stop()
            self._container = None
            atexit.unregister(self.stop)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
