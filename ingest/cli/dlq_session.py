"""One run of an `ingest dlq` command: the open queue, progress on a terminal, questions, and Ctrl-C."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Self, TextIO

import typer
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from ingest import settings
from ingest.backends import BrokerBackend, DeadLetterAccess, broker_backend
from ingest.cli.exits import INTERRUPTED, Ending, OutputFailed
from ingest.domain.errors import ConfigurationError, IngestError
from ingest.operations.dead_letters import Progress
from ingest.telemetry import logs


class ProgressBar(Progress):
    """Shows on a terminal how far an operation is, and counts what it has not handled.

    Args:
        label: what is shown; `{done}` and `{handled}` are replaced.
    """

    def __init__(self, label: str = "read {handled:,}") -> None:
        super().__init__()
        self._label = label
        self._total = 0
        self._move: Callable[[], None] | None = None

    @property
    def remaining(self) -> int:
        """How many were not handled."""
        return max(0, self._total - self.handled)

    def add(self, handled: int, done: int = 0) -> None:
        super().add(handled, done)
        if self._move is not None:
            self._move()

    @contextmanager
    def of(self, total: int) -> Iterator[Self]:
        """Show the progress towards `total` while the context is open."""
        self._total = total
        console = Console(stderr=True)
        columns = TextColumn("{task.description}"), BarColumn(), TextColumn(f"of {total:,}"), TimeRemainingColumn()
        with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task(self._shown(), total=total)
            self._move = lambda: bar.update(task, completed=self.handled, description=self._shown())
            yield self
            self._move = None
        if self.undated:
            typer.echo(
                f"left out {self.undated:,} of unknown age: their producers may have forged the time (RabbitMQ 3), or "
                "it is missing. Select them by reason, customer or ID, without --older-than and --newer-than.",
                err=True,
            )

    def _shown(self) -> str:
        return self._label.format(done=self.done, handled=self.handled)


def run(job: Callable[[DeadLetterAccess], Awaitable[None]], *, change: bool, tell: Callable[[Ending], None]) -> None:
    """Run a job on the dead letters; then tell its result, also if Ctrl-C or an error ended it too early.

    Args:
        job: it must leave its result correct if it is cancelled.
        change: whether it changes the queue.
        tell: prints the result.

    Raises typer.Exit with INTERRUPTED after Ctrl-C, and IngestError.
    """

    async def open_and_run(backend: BrokerBackend) -> None:
        async with backend.open_dead_letters(change=change) as access:
            await job(access)
            if access.held_by_others():
                typer.echo("another consumer reads ingest.dead; messages that it holds are not shown here", err=True)

    run_with_backend(open_and_run, tell)


def run_with_backend(job: Callable[[BrokerBackend], Awaitable[None]], tell: Callable[[Ending], None]) -> None:
    """Run a job that opens the dead letters itself, as `run` does otherwise."""
    current = settings.load()
    logs.configure(current.log_level, current.log_format)

    async def main() -> None:
        await job(broker_backend(current))

    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        if sys.stderr.isatty():
            typer.echo(err=True)  # after ^C, or after a question
        tell(Ending.INTERRUPTED)
        raise typer.Exit(INTERRUPTED) from None
    except OutputFailed:
        raise  # it says how much was written
    except IngestError:
        tell(Ending.FAILED)
        raise
    tell(Ending.COMPLETE)


def terminal() -> TextIO:
    """Return the stream that a person sees. Raises ConfigurationError without a terminal to ask a question on."""
    stream = next((stream for stream in (sys.stderr, sys.stdout) if stream.isatty()), None)
    if stream is None or not sys.stdin.isatty():
        raise ConfigurationError("cannot ask for confirmation without a terminal: use --yes or --dry-run")
    return stream


async def confirmed(question: str, stream: TextIO) -> bool:
    """Ask on a terminal; return whether the answer is y or yes.

    No thread waits for the answer: the connection to the broker stays alive meanwhile, and Ctrl-C ends the wait.
    """
    print(question, "[y/N]: ", end="", file=stream, flush=True)
    answered = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin, answered.set)
    try:
        await answered.wait()
    finally:
        loop.remove_reader(sys.stdin)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
