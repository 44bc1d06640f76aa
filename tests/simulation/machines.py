"""The machines of a simulation: processes that crash, stop, pause and lose connections, and faults between them."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from enum import Enum, auto
from functools import partial
from typing import Any, Final

from tests.simulation.loop import SimulatedLoop

EPOCH: Final = 1_790_000_000.0
"""Unix time at the beginning of a schedule, in seconds. It is in the middle of a month."""
LEASE: Final = 30.0
"""How long a claim lasts, in seconds."""
_HARMLESS: Final = LEASE - 12.0
"""A pause that is longer, in seconds, can end after the lease of a claim that the process had before."""
_BETWEEN: Final = 12.0
"""Two pauses with less time in between, in seconds, count as one."""
_HEARTBEAT: Final = 20.0
"""Seconds of silence after which the broker closes a connection."""
_SHUTDOWN_DEADLINE: Final = 25.0
_FASTEST: Final = 0.0005
_SLOWEST: Final = 0.02
"""The time that a message takes on the network, in seconds."""


class Server(Enum):
    """What a process talks to."""

    STORE = auto()
    BROKER = auto()


class Fate(Enum):
    """What happens to one call."""

    ANSWERED = auto()
    REFUSED = auto()
    """Refused at once, without effect."""
    LOST = auto()
    """No answer, without effect."""
    UNANSWERED = auto()
    """No answer, but it takes effect."""
    LATE = auto()
    """No answer; it takes effect after the caller has given up."""


class Network:
    """Time, chance, and the faults that are active now. `epoch` is the Unix time at the beginning."""

    def __init__(self, loop: SimulatedLoop, seed: int, epoch: float = EPOCH) -> None:
        self.loop = loop
        self.epoch = epoch
        self.rng = random.Random(seed)
        self.outages: dict[Server, float] = {}
        """Until when a server answers no call at all."""
        self.doubts: dict[Server, float] = {}
        """Until when calls have random fates."""
        self.trace: list[str] | None = None
        """What took effect, if it is wanted."""

    def note(self, *words: object) -> None:
        """Add a line to the trace, if it is wanted."""
        if self.trace is not None:
            self.trace.append(f"{self.loop.time():8.3f} {' '.join(map(str, words))}")

    def delay(self) -> float:
        """How long one message travels, in seconds."""
        return self.rng.uniform(_FASTEST, _SLOWEST)

    def fate(self, process: "Process", server: Server) -> Fate:
        """Draw the fate of a call that starts now."""
        now = self.loop.time()
        if now < max(self.outages.get(server, 0.0), process.outages.get(server, 0.0)):
            return self.rng.choice((Fate.REFUSED, Fate.LOST))
        if now < max(self.doubts.get(server, 0.0), process.doubts.get(server, 0.0)) and self.rng.random() < 0.6:
            return self.rng.choice((Fate.REFUSED, Fate.LOST, Fate.UNANSWERED, Fate.LATE))
        return Fate.ANSWERED

    def is_disturbed(self, process: "Process", server: Server) -> bool:
        """Return whether calls of a process to a server may fail now."""
        faults = (self.outages, self.doubts, process.outages, process.doubts)
        return self.loop.time() < max(fault.get(server, 0.0) for fault in faults)

    def later(self, seconds: float, effect: Callable[[], Any]) -> None:
        """Let something happen at a server, whatever becomes of the caller."""
        self.loop.call_later(seconds, effect)


class Process:
    """A process of the service: it can crash or pause at any await, stop gracefully, and have a wrong clock.

    Args:
        name: for messages.
        network: time and faults.
        main: runs the process; it is called again after each restart. It ends if `stopping` is set.
        skew: how far its wall clock is ahead, in seconds.
    """

    def __init__(
        self, name: str, network: Network, main: Callable[["Process"], Coroutine[Any, Any, None]], skew: float = 0.0
    ) -> None:
        self.name = name
        self.network = network
        self.skew = skew
        self.outages: dict[Server, float] = {}
        self.doubts: dict[Server, float] = {}
        self.alive = False
        self.life = 0
        """Counts the starts. Whatever belongs to an earlier life has ended with it."""
        self.stopping = asyncio.Event()
        self.charged: Counter[str] = Counter()
        """What this life has charged, and may have to refund, in tasks by customer."""
        self.interrupted: Counter[str] = Counter()
        """The same of the lives that ended by a crash, or were paused for too long."""
        self.failures: list[BaseException] = []
        """What `main` raised: the process ended although nothing had crashed it."""
        self._main = main
        self._tasks: set[asyncio.Task[Any]] = set()
        self._paused_at = 0.0
        self._resumes_at = 0.0
        self._down = 0.0
        self._on_crash: list[Callable[[], None]] = []
        self._on_silence: list[Callable[[], None]] = []

    def clock(self) -> float:
        """The process's wall clock, in Unix seconds."""
        return self.network.epoch + self.network.loop.time() + self.skew

    def start(self) -> None:
        self.alive = True
        self.life += 1
        self.stopping = asyncio.Event()
        self.charged = Counter()
        self._on_crash = []
        self._on_silence = []
        self.run(self._guard())

    async def _guard(self) -> None:
        try:
            await self._main(self)
            if self.stopping.is_set():
                if self.network.is_disturbed(self, Server.STORE):
                    self.interrupted += self.charged  # it does not wait until the store has taken everything
                self._end(self._down)
            else:
                self.failures.append(AssertionError("it has stopped by itself"))
        except Exception as error:  # noqa: BLE001 - the checker reports it
            self.failures.append(error)

    def run(self, job: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """Run a job in this process: a crash ends it."""
        task = self.network.loop.create_task(job)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def on_crash(self, callback: Callable[[], None]) -> None:
        """Call back if the process crashes: its connections break."""
        self._on_crash.append(callback)

    def on_silence(self, callback: Callable[[], None]) -> None:
        """Call back if the process is paused until the broker closes its connections."""
        self._on_silence.append(callback)

    @property
    def is_paused(self) -> bool:
        """Whether the process is suspended now."""
        return self._resumes_at > self.network.loop.time()

    def crash(self, down: float) -> None:
        """End every task where it waits; start again after `down` seconds."""
        if self.alive:
            self.interrupted += self.charged
            self._end(down)

    def stop(self, down: float) -> None:
        """Stop gracefully, as SIGTERM does, and start again after `down` seconds. After a deadline it is a crash."""
        if not self.alive or self.stopping.is_set():
            return
        self._down = down
        self.stopping.set()
        life = self.life
        self.network.later(_SHUTDOWN_DEADLINE, lambda: self.crash(down) if self.life == life else None)

    def _end(self, down: float) -> None:
        self.alive = False
        self._resumes_at = 0.0
        for callback in self._on_crash:
            callback()
        for task in list(self._tasks):
            task.cancel()
        self.network.later(down, self.start)

    def pause(self, seconds: float) -> None:
        """Stop the process as SIGSTOP does: what it waits for arrives when it continues."""
        now = self.network.loop.time()
        if now > self._resumes_at + _BETWEEN:
            self._paused_at = now
        self._resumes_at = max(self._resumes_at, now + seconds)
        if self.alive and self._resumes_at - self._paused_at > _HARMLESS:
            self.interrupted += self.charged
        if self._resumes_at - self._paused_at > _HEARTBEAT:
            self.network.later(max(0.0, self._paused_at + _HEARTBEAT - now), partial(self._be_silent, self.life))

    def _be_silent(self, life: int) -> None:
        if self.alive and self.life == life:
            for callback in self._on_silence:
                callback()

    async def runs(self, life: int) -> None:
        """Wait while the process is paused. Raises CancelledError if the life of the caller has ended."""
        while self.alive and life == self.life and (pause := self._resumes_at - self.network.loop.time()) > 0:
            await asyncio.sleep(pause)
        if not self.alive or life != self.life:
            raise asyncio.CancelledError
