"""The broker that the settings name: RabbitMQ, or the embedded queue in a SQLite file."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import cached_property
from typing import Final, Protocol
from urllib.parse import unquote, urlsplit

import msgspec

from ingest.backends.encryption import encryption_finding
from ingest.backends.files import sqlite_file
from ingest.backends.tls import check_certificates, is_encrypted, ssl_context
from ingest.broker.bundles.dead_letters import UnbundledDeadLetters
from ingest.broker.embedded.broker import USER, EmbeddedBroker
from ingest.broker.embedded.dead_letters import EmbeddedDeadLetters
from ingest.broker.rabbitmq import checks
from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.broker.rabbitmq.dead_letters import RabbitDeadLetters
from ingest.broker.rabbitmq.management import Management, unmet
from ingest.broker.rabbitmq.status import broker_state
from ingest.domain import topology
from ingest.domain.errors import BrokerUnavailable, ConfigurationError, IngestError
from ingest.domain.findings import Finding, ok
from ingest.domain.overview import BrokerState, QueueState
from ingest.domain.ports import Broker, DeadLetterQueue, Publisher
from ingest.settings import Settings
from ingest.sqlite.checks import check_file

_VARIABLE: Final = "INGEST_BROKER_URL"


class DeadLetterAccess(msgspec.Struct, frozen=True):
    """`ingest.dead`, and what a redrive needs.

    `publisher` makes a publisher; it raises ConfigurationError if the queue was opened only to read. `trusted_users`
    are the service's users. `held_by_others` says whether another consumer holds messages of the queue.
    """

    queue: DeadLetterQueue
    publisher: Callable[[], Awaitable[Publisher]]
    trusted_users: frozenset[str]
    held_by_others: Callable[[], bool] = lambda: False


class BrokerBackend(Protocol):
    """What commands and processes need from a broker, whichever it is."""

    @property
    def system(self) -> str:
        """The name of the messaging system in traces (OpenTelemetry's `messaging.system`)."""
        ...

    @property
    def trusted_users(self) -> frozenset[str]:
        """The service's own AMQP users: INGEST_TRUSTED_USERS, by default the user that it connects as."""
        ...

    @property
    def layout(self) -> topology.Layout:
        """How many queues the shim has."""
        ...

    async def open(self, purpose: str) -> Broker:
        """Open the broker; `purpose` names its connections. Raises ConfigurationError, BrokerUnavailable."""
        ...

    def open_dead_letters(self, *, change: bool) -> AbstractAsyncContextManager[DeadLetterAccess]:
        """Open `ingest.dead`, to read it or to `change` it. Raises ConfigurationError, BrokerUnavailable."""
        ...

    async def state(self) -> BrokerState:
        """Return the broker's state for `ingest status`. An outage is part of the state and raises no error."""
        ...

    async def producer_queues(self) -> list[str] | None:
        """Return the names of the queues that belong to single producers; None if that is not known.

        Raises BrokerUnavailable, ConfigurationError.
        """
        ...

    async def findings(self, outage_hold: float) -> list[Finding]:
        """Return the broker's findings for `ingest doctor`. An outage is a finding and raises no error.

        `outage_hold` is INGEST_OUTAGE_HOLD in seconds, which is compared with RabbitMQ's consumer_timeout. Raises
        ConfigurationError.
        """
        ...


def broker_backend(settings: Settings) -> BrokerBackend:
    """Return the backend of INGEST_BROKER_URL. Raises ConfigurationError."""
    scheme = settings.broker.partition("://")[0]
    if scheme in ("amqp", "amqps"):
        return RabbitMQBackend(settings)
    if scheme == "sqlite":
        return EmbeddedBackend(settings)
    raise ConfigurationError(f"{_VARIABLE} must begin with amqp://, amqps:// or sqlite:///")


def require_rabbitmq(settings: Settings, command: str) -> "RabbitMQBackend":
    """Return the backend for a command that the embedded queue does not support. Raises ConfigurationError."""
    backend = broker_backend(settings)
    if not isinstance(backend, RabbitMQBackend):
        raise ConfigurationError(
            f"`ingest {command}` needs RabbitMQ: set INGEST_BROKER_URL=amqp://…, or use `ingest dev`, which has both "
            "sides of the embedded queue in one process"
        )
    return backend


class RabbitMQBackend:
    """RabbitMQ. Raises ConfigurationError for a URL or certificates that cannot be used."""

    system = "rabbitmq"

    def __init__(self, settings: Settings) -> None:
        check_certificates(settings)
        self._settings = settings

    @cached_property
    def _ssl_context(self) -> ssl.SSLContext:
        """Reads the certificates once."""
        return ssl_context(self._settings)

    @property
    def trusted_users(self) -> frozenset[str]:
        return self._settings.trusted_users or frozenset({self.new_broker("ingest").user})

    @property
    def layout(self) -> topology.Layout:
        return self._settings.layout

    @property
    def virtual_host(self) -> str:
        """The virtual host in the broker's URL."""
        return unquote(urlsplit(self._settings.broker).path.removeprefix("/")) or "/"

    @property
    def management(self) -> Management | None:
        """The management API; None if INGEST_MANAGEMENT_URL is not set."""
        url = self._settings.management_url.get_secret_value()
        if not url:
            return None
        context = self._ssl_context if is_encrypted(url) else None
        return Management(url, self.virtual_host, context, self.layout)

    def new_broker(self, purpose: str) -> RabbitBroker:
        """Return a broker that is not connected yet."""
        settings = self._settings
        return RabbitBroker(
            settings.broker,
            heartbeat=settings.heartbeat,
            confirm_timeout=settings.confirm_timeout,
            name=purpose,
            ssl_context=self._ssl_context if is_encrypted(settings.broker) else None,
            certificate_user=settings.broker_user,
            layout=self.layout,
        )

    async def open(self, purpose: str) -> RabbitBroker:
        return self.new_broker(purpose)

    @asynccontextmanager
    async def open_dead_letters(self, *, change: bool) -> AsyncIterator[DeadLetterAccess]:
        broker = self.new_broker("ingest dlq")
        rabbit = RabbitDeadLetters(broker, self.management)
        queue = UnbundledDeadLetters(rabbit, self.trusted_users, broker.publisher if change else None)
        try:
            yield DeadLetterAccess(queue, broker.publisher, self.trusted_users, lambda: rabbit.other_consumers > 0)
        finally:
            await queue.close()

    async def state(self) -> BrokerState:
        state = await broker_state(self.new_broker("ingest status"), self.management)
        if not state.queues or self.management is None:
            return state
        existing = {queue.name for queue in state.queues}
        missing = await asyncio.to_thread(_queues_without_policy, self.management, state.version)
        if not (names := [name for name in missing if name in existing]):
            return state
        problem = f"policies are missing for {', '.join(names)}: run `ingest topology apply`"
        return msgspec.structs.replace(state, problems=[*state.problems, problem])

    async def producer_queues(self) -> list[str] | None:
        return None if self.management is None else await asyncio.to_thread(self.management.producer_queues)

    async def findings(self, outage_hold: float) -> list[Finding]:
        broker = self.new_broker("ingest doctor")
        trusted = self._settings.trusted_users
        return [*await checks.findings(broker, self.management, trusted, outage_hold), *self._encryption(broker)]

    def _encryption(self, broker: RabbitBroker) -> Iterator[Finding]:
        yield encryption_finding(
            "broker",
            _VARIABLE,
            broker.hosts,
            encrypted=is_encrypted(self._settings.broker),
            exposed="the password and all submissions",
            do="use amqps:// and INGEST_BROKER_CAFILE, unless the network is private",
        )
        if management := self.management:
            yield encryption_finding(
                "broker",
                "INGEST_MANAGEMENT_URL",
                [management.host],
                encrypted=is_encrypted(management.base),
                exposed="the password",
                do="use https:// and INGEST_BROKER_CAFILE, unless the network is private",
            )


class EmbeddedBackend:
    """The embedded queue. One process at a time can open it to change it.

    While a broker that `open` has returned is open, its dead letters are changed through it.
    """

    system = "ingest.embedded"
    layout = topology.DEFAULT

    def __init__(self, settings: Settings) -> None:
        self._path = sqlite_file(settings.broker, _VARIABLE)
        self.trusted_users = settings.trusted_users or frozenset({USER})
        self._opened: EmbeddedBroker | None = None

    async def open(self, purpose: str) -> EmbeddedBroker:
        self._opened = await EmbeddedBroker.open(self._path)
        return self._opened

    @asynccontextmanager
    async def open_dead_letters(self, *, change: bool) -> AsyncIterator[DeadLetterAccess]:
        publisher: Callable[[], Awaitable[Publisher]]
        if change and self._opened is not None and not self._opened.is_closed:
            embedded, publisher = self._opened.dead_letters(keep_open=True), self._opened.publisher
        elif change:
            broker = await self._open_to_change()
            embedded, publisher = broker.dead_letters(), broker.publisher
        else:
            embedded, publisher = await EmbeddedDeadLetters.read_only(self._path), _no_publisher
        queue = UnbundledDeadLetters(embedded, self.trusted_users, publisher if change else None)
        try:
            yield DeadLetterAccess(queue, publisher, self.trusted_users)
        finally:
            await queue.close()

    async def _open_to_change(self) -> EmbeddedBroker:
        if not self._path.exists():
            raise ConfigurationError(f"{self._path} does not exist: no `ingest dev` has used it yet")
        try:
            return await EmbeddedBroker.open(self._path)
        except ConfigurationError as error:
            if "in use" not in str(error):
                raise
            raise ConfigurationError(
                f"{self._path} is in use by a running `ingest dev`: stop it first. `ingest dlq list`, `show` and "
                "`export` work beside it"
            ) from error

    async def state(self) -> BrokerState:
        name = f"embedded, {self._path}"
        try:
            queue = await EmbeddedDeadLetters.read_only(self._path)
            depths, oldest = await queue.depths(), await queue.oldest()
            await queue.close()
        except IngestError as error:
            return BrokerState(name=name, problems=[str(error)])
        now = time.time()
        queues = [
            QueueState(
                name=queue, ready=ready, unacked=unacked, oldest=now - oldest[queue] if queue in oldest else None
            )
            for queue, (ready, unacked) in depths.items()
        ]
        return BrokerState(name=name, queues=queues)

    async def producer_queues(self) -> None:
        return None

    async def findings(self, outage_hold: float) -> list[Finding]:
        return [
            ok("broker", "embedded: for one process (`ingest dev`); several processes need RabbitMQ"),
            *check_file("broker", self._path),
        ]


def _queues_without_policy(management: Management, version: str) -> list[str]:
    """Return the queues that can lose messages without their policy; none if the user may not read policies."""
    try:
        in_force = management.policies()
    except (BrokerUnavailable, ConfigurationError):
        return []
    # Before RabbitMQ 4, a queue has no delivery limit by default, and then it drops nothing.
    ignored = {"delivery-limit"} if version.startswith("3.") else set()
    queues = management.layout.queues
    return [queue.name for queue in queues if unmet(queue.name, in_force.of(queue.name)).keys() - ignored]


async def _no_publisher() -> Publisher:
    raise ConfigurationError("the dead letters were opened only to read")
