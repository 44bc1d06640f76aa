"""The store that the settings name: an Aerospike cluster, or a SQLite file."""

import asyncio
import os
import sqlite3
from typing import Final, Protocol

from ingest.backends.files import sqlite_file
from ingest.domain.errors import ConfigurationError, StoreUnavailable
from ingest.domain.findings import Finding, error, ok
from ingest.domain.overview import StoreState
from ingest.domain.ports import Store
from ingest.settings import Settings, misspelt, unknown_variables
from ingest.sqlite.checks import check_file, read_time
from ingest.store.aerospike import checks
from ingest.store.aerospike.info import AerospikeView
from ingest.store.aerospike.status import store_state
from ingest.store.aerospike.store import AerospikeStore
from ingest.store.sqlite import SqliteStore

_VARIABLE: Final = "INGEST_STORE_URL"


class StoreBackend(Protocol):
    """What commands and processes need from a store, whichever it is."""

    async def open(self) -> Store:
        """Open the store. Raises ConfigurationError, StoreUnavailable."""
        ...

    async def state(self) -> StoreState:
        """Return the store's state for `ingest status`. An outage is part of the state and raises no error."""
        ...

    async def findings(self) -> list[Finding]:
        """Return the store's findings for `ingest doctor`."""
        ...

    async def close(self) -> None:
        """Close what `state` keeps open between calls."""
        ...


def store_backend(settings: Settings) -> StoreBackend:
    """Return the backend of INGEST_STORE_URL.

    Raises:
        ConfigurationError: the URL is invalid, or a file beside RabbitMQ: several processes would not share it, and a
            worker would reject the tasks of customers that are in the real store.
    """
    scheme = settings.store.partition("://")[0]
    if scheme == "sqlite" and settings.broker.partition("://")[0] in ("amqp", "amqps"):
        wrong = "is a file" if settings.store_url.get_secret_value() else "is not set"
        hints = [f" {misspelt(name, closest)}" for name, closest in unknown_variables(os.environ).items()]
        raise ConfigurationError(
            f"{_VARIABLE} {wrong}: with RabbitMQ, customers and keys are in Aerospike; set "
            f"{_VARIABLE}=aerospike://host:3000/namespace.{''.join(hints)}"
        )
    if scheme == "aerospike":
        return AerospikeBackend(settings)
    if scheme == "sqlite":
        return SqliteBackend(settings)
    raise ConfigurationError(f"{_VARIABLE} must begin with aerospike:// or sqlite:///")


class AerospikeBackend:
    """An Aerospike cluster."""

    def __init__(self, settings: Settings) -> None:
        self._url = settings.store
        self._timeout = settings.store_timeout
        self._view: AerospikeView | None = None

    async def open(self) -> AerospikeStore:
        return await AerospikeStore.open(self._url, call_timeout=self._timeout)

    async def state(self) -> StoreState:
        self._view = self._view or AerospikeView.open(self._url, self._timeout)
        return await store_state(self._view)

    async def findings(self) -> list[Finding]:
        view = AerospikeView.open(self._url, self._timeout)
        try:
            findings = checks.findings(await view.nodes(), view.namespace)
        except StoreUnavailable as unavailable:
            return [
                error(
                    "store", str(unavailable), "start Aerospike, or correct hosts, user or password in INGEST_STORE_URL"
                )
            ]
        finally:
            await view.close()
        return [*findings, await self._write_finding()]

    async def _write_finding(self) -> Finding:
        store = await self.open()
        try:
            await store.ready()
        except StoreUnavailable as unavailable:
            return error("store", f"a write with a time to live is refused: {unavailable}", "see the findings above")
        finally:
            await store.close()
        return ok("store", "takes a write with a time to live")

    async def close(self) -> None:
        if self._view is not None:
            await self._view.close()
            self._view = None


class SqliteBackend:
    """A SQLite file."""

    def __init__(self, settings: Settings) -> None:
        self._path = sqlite_file(settings.store, _VARIABLE)

    async def open(self) -> SqliteStore:
        return await SqliteStore.open(self._path)

    async def state(self) -> StoreState:
        name = f"embedded, {self._path}"
        try:
            seconds = await asyncio.to_thread(read_time, self._path)
        except sqlite3.Error as problem:
            return StoreState(name=name, problems=[f"{self._path}: {problem}"])
        return StoreState(name=name, round_trip=seconds, used=f"{self._path.stat().st_size / 2**20:,.1f} MiB")

    async def findings(self) -> list[Finding]:
        return check_file("store", self._path)

    async def close(self) -> None:
        """Nothing is kept open."""
