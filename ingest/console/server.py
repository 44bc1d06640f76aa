"""The console as a running server."""

import asyncio
import socket
from collections.abc import Sequence
from typing import Final

from ingest.backends import BrokerBackend, broker_backend, store_backend
from ingest.console.access import Access
from ingest.console.actions import Actions
from ingest.console.app import Console
from ingest.console.customers import Customers
from ingest.console.dead_letters import DeadLetters
from ingest.console.events import Events
from ingest.console.history import History
from ingest.operations.find import Findings
from ingest.operations.find import find as find_submission
from ingest.operations.status import StatusCollector
from ingest.serving import EmbeddedServer
from ingest.settings import Settings
from ingest.shim.http.server import shim_server

_GRACE: Final = 5.0
"""Seconds that requests may continue after the stop."""


class ConsoleServer:
    """Serves the console of a service.

    Args:
        settings: say which service, and who may read the pages.
        listener: a listening socket.
        metrics_urls: `http://host:port` of processes' metrics.
        broker: opens the broker; by default one of the settings. A process that has the embedded queue open passes its
            own.
        events: the events of this process; None for no page of events.

    Raises:
        ConfigurationError: the settings are invalid, or would open the console to the network.
    """

    def __init__(
        self,
        settings: Settings,
        listener: socket.socket,
        metrics_urls: Sequence[str],
        broker: BrokerBackend | None = None,
        events: Events | None = None,
    ) -> None:
        token = settings.console_token.get_secret_value()
        self._access = Access(settings.console_host, token, settings.console_user_header)
        self._listener = listener
        self._events = events
        self._store, self._broker = store_backend(settings), broker or broker_backend(settings)
        self._allow_actions = settings.console_allow_actions
        self._letters = DeadLetters(self._broker.open_dead_letters)
        self._collector = StatusCollector(settings, list(metrics_urls), dead=self._letters)

    @property
    def url(self) -> str:
        """The address of the first page."""
        host, port = self._listener.getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set."""
        letters = self._letters
        actions = None
        if self._allow_actions:
            actions = Actions(self._broker.open_dead_letters, letters)
        customers = Customers(self._store.open_to_read)

        async def find(sought: str, customer: str | None) -> Findings:
            return await find_submission(sought, self._store.open_to_read, letters.search, customer)

        history = History(self._collector.collect)
        app = Console(self._access, history, find, letters, customers, actions, events=self._events)
        server = shim_server(app, _GRACE)
        others = [asyncio.create_task(history.run()), asyncio.create_task(_end(server, stop))]
        try:
            await server.serve([self._listener])
        finally:
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            if actions is not None:
                await actions.close()
            await letters.close()
            await customers.close()
            await self._collector.close()


async def _end(server: EmbeddedServer, stop: asyncio.Event) -> None:
    await stop.wait()
    server.should_exit = True
