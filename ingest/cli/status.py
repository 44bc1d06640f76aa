"""`ingest status`: how it is going, live."""

import asyncio
import sqlite3
import sys
import time
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer
from rich.console import Console
from rich.live import Live

from ingest import backends, settings
from ingest.backends import management, open_dead_letters, sqlite_path
from ingest.broker.embedded.dead_letters import EmbeddedDeadLetters
from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.broker.rabbitmq.status import broker_state
from ingest.cli.options import Json
from ingest.cli.status_view import picture
from ingest.domain import topology
from ingest.domain.errors import IngestError
from ingest.domain.overview import BrokerState, DeadReason, Overview, QueueState, StoreState
from ingest.operations.dead_letters import Group, Selection, add_to, select
from ingest.operations.scrape import Scraper
from ingest.settings import Settings
from ingest.sqlite.checks import read_time
from ingest.store.aerospike.info import AerospikeView
from ingest.store.aerospike.status import store_state
from ingest.telemetry import logs
from ingest.telemetry.logs import redact

_MOST_DEAD: Final = 2000
_DEAD_EVERY: Final = 30.0
"""On RabbitMQ looking at dead letters holds them for a moment: few, and not often."""


def status(
    once: Annotated[bool, typer.Option("--once", help="Print it once and end.")] = False,
    interval: Annotated[float, typer.Option(min=0.5, help="Seconds between looks.")] = 2.0,
    scrape: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="A process's metrics port, http://host:port; repeatable."),
    ] = None,
    svg: Annotated[Path | None, typer.Option(metavar="FILE", help="Print once, and draw it into a file.")] = None,
    json: Json = False,
) -> None:
    """Queues, dead letters by reason, processes and store, live. Ctrl-C ends it.

    Rates, unacknowledged messages and alarms need INGEST_MANAGEMENT_URL. Brake and readiness come from the
    processes' own ports (INGEST_METRICS_PORT). What is not known is shown as such.

    Exit code with --once or --json: 0, or 1 where broker or store do not answer or something is wrong with them.
    """
    loaded = settings.load()
    logs.configure("error", loaded.log_format)
    urls = scrape or ([f"http://{loaded.metrics_host}:{loaded.metrics_port}"] if loaded.metrics_port else [])
    if not (once or json or svg) and sys.stdout.isatty():
        asyncio.run(_live(Watch(loaded, urls), interval))
        return
    seen = asyncio.run(Watch(loaded, urls).once())
    if json:
        typer.echo(redact(msgspec.json.encode(seen).decode()))
    else:
        console = Console(record=svg is not None, width=110 if svg else None)
        console.print(picture(seen))
        if svg is not None:
            console.save_svg(str(svg), title="ingest status")
    if seen.broker.problems or seen.store.problems:
        raise typer.Exit(1)


async def _live(watch: "Watch", interval: float) -> None:
    with Live(console=Console(), auto_refresh=False, screen=True) as live:
        while True:
            live.update(picture(await watch.look()), refresh=True)
            await asyncio.sleep(interval)


class Watch:
    """Looks again and again; remembers what rates and dead letters take."""

    def __init__(self, loaded: Settings, urls: list[str]) -> None:
        self._loaded = loaded
        self._scraper = Scraper(urls)
        self._view: AerospikeView | None = None
        self._dead: list[DeadReason] | None = None
        self._dead_at = 0.0
        self._dead_depth = -1

    async def once(self) -> Overview:
        try:
            return await self.look()
        finally:
            if self._view is not None:
                await self._view.close()

    async def look(self) -> Overview:
        """Never raises for what is away. Raises ConfigurationError."""
        broker, store, (processes, problems) = await asyncio.gather(self._broker(), self._store(), self._scraper.look())
        note = await self._look_at_dead(broker)
        return Overview(
            at=time.time(),
            broker=broker,
            store=store,
            processes=processes,
            process_problems=problems,
            dead=self._dead,
            dead_note=note,
        )

    async def _broker(self) -> BrokerState:
        path = sqlite_path(self._loaded.broker)
        if path is None:
            broker = await backends.open_broker(self._loaded, "ingest status")
            if isinstance(broker, RabbitBroker):
                return await broker_state(broker, management(self._loaded))
        name = f"embedded, {path}"
        try:
            queue = await EmbeddedDeadLetters.look_at(Path(path or ""))
            depths = await queue.depths()
            await queue.close()
        except IngestError as error:
            return BrokerState(name=name, problems=[str(error)])
        queues = [QueueState(name=each, ready=ready, unacked=unacked) for each, (ready, unacked) in depths.items()]
        return BrokerState(name=name, queues=queues)

    async def _store(self) -> StoreState:
        path = sqlite_path(self._loaded.store)
        if path is None:
            self._view = self._view or AerospikeView.open(self._loaded.store, self._loaded.store_timeout)
            return await store_state(self._view)
        name = f"embedded, {path}"
        try:
            seconds = await asyncio.to_thread(read_time, path)
        except sqlite3.Error as error:
            return StoreState(name=name, problems=[f"{path}: {error}"])
        return StoreState(name=name, round_trip=seconds, used=f"{path.stat().st_size / 2**20:,.1f} MiB")

    async def _look_at_dead(self, broker: BrokerState) -> str:
        """Look where that is new and cheap; returns what is to be said about it."""
        queue = next((each for each in broker.queues if each.name == topology.INGEST_DEAD), None)
        if queue is None:
            self._dead = None
            return "unknown"
        if queue.ready == 0 and not queue.unacked:
            self._dead, self._dead_depth = [], 0
            return ""
        if queue.ready > _MOST_DEAD:
            self._dead = None
            return f"{queue.ready:,}: too many to look at; `ingest dlq list` does"
        if queue.consumers:
            return "somebody else is looking at them"
        due = queue.ready != self._dead_depth and time.monotonic() - self._dead_at >= _DEAD_EVERY
        if due or self._dead_depth < 0:
            try:
                self._dead = await self._reasons()
            except IngestError as error:
                self._dead = None
                return str(error)
            self._dead_at, self._dead_depth = time.monotonic(), queue.ready
        return "" if queue.ready == self._dead_depth else f"{queue.ready} by now"

    async def _reasons(self) -> list[DeadReason]:
        groups: dict[str, Group] = {}
        async with open_dead_letters(self._loaded, clear=False) as dead:
            async for found in select(dead.queue, Selection(), dead.trusted, lambda _: None):
                add_to(groups, found)
        now = time.time()
        ordered = sorted(groups.values(), key=lambda each: -each.count)
        return [
            DeadReason(reason=each.reason, count=each.count, oldest=each.oldest and now - each.oldest)
            for each in ordered
        ]
