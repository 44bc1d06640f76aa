"""The store that the settings name: an Aerospike cluster, or a SQLite file."""

import asyncio
import os
import sqlite3
from typing import Final, Protocol

from ingest.backends.encryption import encryption_finding
from ingest.backends.files import sqlite_file
from ingest.domain.errors import ConfigurationError, StoreUnavailable
from ingest.domain.findings import Finding, error, not_checked, ok, warning
from ingest.domain.overview import StoreState, counted
from ingest.domain.ports import Store
from ingest.settings import Settings, misspelt, unknown_variables
from ingest.sqlite.checks import check_file, read_time
from ingest.store.aerospike import checks
from ingest.store.aerospike.client import parse_url
from ingest.store.aerospike.info import AerospikeView
from ingest.store.aerospike.status import store_state
from ingest.store.aerospike.store import AerospikeStore
from ingest.store.sqlite import SqliteStore

_VARIABLE: Final = "INGEST_STORE_URL"
_USE: Final = ("writes", "customers")


class StoreBackend(Protocol):
    """What commands and processes need from a store, whichever it is."""

    async def open(self) -> Store:
        """Open the store. Raises ConfigurationError, StoreUnavailable."""
        ...

    async def open_to_read(self) -> Store:
        """Open the store without changing anything: nothing is created. Raises as `open`; changes are refused."""
        ...

    async def state(self) -> StoreState:
        """Return the store's state for `ingest status`. An outage is part of the state and raises no error."""
        ...

    async def findings(self) -> list[Finding]:
        """Return the store's findings for `ingest doctor`. An outage is a finding. Raises ConfigurationError."""
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

    async def open_to_read(self) -> AerospikeStore:
        return await self.open()  # it creates nothing

    async def state(self) -> StoreState:
        self._view = self._view or AerospikeView.open(self._url, self._timeout)
        return await store_state(self._view)

    async def findings(self) -> list[Finding]:
        return [*await self._cluster_findings(), self._encryption()]

    def _encryption(self) -> Finding:
        address = parse_url(self._url)
        return encryption_finding(
            "store",
            _VARIABLE,
            [host for host, _ in address.hosts],
            encrypted=address.tls,
            exposed="customers, hashes of API keys, and the ids of tasks, and can change them",
            do="add ?tls=true&tls_name=…&cafile=… (Aerospike Enterprise), or let only the service reach it through a "
            "private network: deploy/trust.md",
        )

    async def _cluster_findings(self) -> list[Finding]:
        view = AerospikeView.open(self._url, self._timeout)
        try:
            nodes = await view.nodes()
        except StoreUnavailable as unavailable:
            do = "start Aerospike, or correct hosts, user or password in INGEST_STORE_URL"
            return [error("store", f"{unavailable}. {not_checked(('its configuration', *_USE))}", do)]
        finally:
            await view.close()
        return [
            *checks.findings(nodes, view.namespace, hosts=view.hosts),
            *await self._use(any(node.namespace for node in nodes)),
        ]

    async def _use(self, has_namespace: bool) -> list[Finding]:
        """Check what needs the namespace. The finding that it is missing is another one."""
        if not has_namespace:
            return []
        store = await self.open()
        try:
            return [await _write_finding(store), await _customer_finding(store)]
        finally:
            await store.close()

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

    async def open_to_read(self) -> SqliteStore:
        return await SqliteStore.read_only(self._path)

    async def state(self) -> StoreState:
        name = f"embedded, {self._path}"
        try:
            seconds = await asyncio.to_thread(read_time, self._path)
        except sqlite3.Error as problem:
            return StoreState(name=name, problems=[f"{self._path}: {problem}"])
        return StoreState(name=name, round_trip=seconds, used=f"{self._path.stat().st_size / 2**20:,.1f} MiB")

    async def findings(self) -> list[Finding]:
        # Only `ingest dev` uses the file, and it adds a customer.
        return check_file("store", self._path)

    async def close(self) -> None:
        """Nothing is kept open."""


async def _write_finding(store: Store) -> Finding:
    try:
        await store.ready()
    except StoreUnavailable as unavailable:
        return error("store", f"a write with a time to live is refused: {unavailable}", "see the findings above")
    return ok("store", "a write with a time to live succeeds")


async def _customer_finding(store: Store) -> Finding:
    try:
        customers = await store.customers()
    except StoreUnavailable as unavailable:
        return warning("store", f"{unavailable}. {not_checked(('customers',))}", "see the findings above")
    if not customers:
        return warning(
            "store",
            "there is no customer, so every submission is refused",
            "run `ingest customer add CUST`, and `ingest key create CUST` for an API key",
        )
    disabled = sum(customer.disabled for customer in customers)
    if disabled == len(customers):
        return warning(
            "store",
            "every customer is disabled, so every submission is refused",
            "run `ingest customer set CUST --enabled` for those that may submit",
        )
    return ok("store", counted(len(customers), "customer") + (f", {disabled:,} of them disabled" if disabled else ""))
