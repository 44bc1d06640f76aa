"""What operator commands open: the management API, and the dead letters of whichever broker is set."""

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import msgspec

from ingest.broker.embedded.broker import USER, EmbeddedBroker
from ingest.broker.embedded.dead_letters import EmbeddedDeadLetters
from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.broker.rabbitmq.dead_letters import RabbitDeadLetters
from ingest.broker.rabbitmq.management import Management
from ingest.domain.errors import ConfigurationError
from ingest.domain.ports import DeadLetterQueue, Publisher, Store
from ingest.settings import Settings
from ingest.store.aerospike.store import AerospikeStore
from ingest.store.sqlite import SqliteStore


class Dead(msgspec.Struct, frozen=True):
    """The queue, what makes a publisher where it was opened to be cleared, and the users whose word counts."""

    queue: DeadLetterQueue
    publisher: Callable[[], Awaitable[Publisher]]
    trusted: frozenset[str]


def management(loaded: Settings) -> Management | None:
    """The management API, where its URL is set."""
    url = loaded.management_url.get_secret_value()
    return Management(url, vhost(loaded)) if url else None


def vhost(loaded: Settings) -> str:
    """The virtual host in the broker's URL."""
    return unquote(urlsplit(loaded.broker).path.removeprefix("/")) or "/"


def sqlite_path(url: str) -> Path | None:
    """The file in a `sqlite:///FILE` URL; None for other URLs. Raises ConfigurationError."""
    scheme, _, rest = url.partition("://")
    if scheme != "sqlite":
        return None
    if len(rest) < 2 or not rest.startswith("/"):
        raise ConfigurationError("it must look like sqlite:///FILE (with four slashes for an absolute path)")
    return Path(rest[1:])


@asynccontextmanager
async def open_dead_letters(loaded: Settings, *, clear: bool) -> AsyncIterator[Dead]:
    """Open `ingest.dead`; `clear`: not only to look. Raises ConfigurationError, BrokerUnavailable."""
    path = sqlite_path(loaded.broker)
    if path is not None and not clear:
        dead = Dead(await EmbeddedDeadLetters.look_at(path), _no_publisher, loaded.trusted_users or frozenset({USER}))
    else:
        broker = await _open(loaded)
        trusted = loaded.trusted_users or frozenset({broker.user} if broker.user else ())
        if isinstance(broker, RabbitBroker):
            dead = Dead(RabbitDeadLetters(broker, management(loaded)), broker.publisher, trusted)
        else:
            dead = Dead(broker.dead_letters(), broker.publisher, trusted)
    try:
        yield dead
    finally:
        await dead.queue.close()


async def _no_publisher() -> Publisher:
    raise ConfigurationError("opened to look only")


async def _open(loaded: Settings) -> RabbitBroker | EmbeddedBroker:
    path = sqlite_path(loaded.broker)
    if path is not None and not path.exists():
        raise ConfigurationError(f"there is no {path}: nothing has run with it yet")
    try:
        return await open_broker(loaded, "ingest dlq")
    except ConfigurationError as error:
        if path is None or "in use" not in str(error):
            raise
        raise ConfigurationError(
            f"{path} is in use by a running `ingest dev`: stop it first. `ingest dlq list`, `show` and `export` work "
            "beside it"
        ) from error


async def open_store(settings: Settings) -> Store:
    """The store that the URL names. Raises ConfigurationError, StoreUnavailable."""
    scheme, _, rest = settings.store.partition("://")
    if scheme == "aerospike":
        return await AerospikeStore.open(settings.store, call_timeout=settings.store_timeout)
    if scheme == "sqlite":
        return await SqliteStore.open(_file(rest, "INGEST_STORE_URL"))
    raise ConfigurationError("INGEST_STORE_URL must begin with aerospike:// or sqlite:///")


async def open_broker(settings: Settings, purpose: str = "ingest") -> RabbitBroker | EmbeddedBroker:
    """The broker that the URL names. Raises ConfigurationError, BrokerUnavailable."""
    scheme, _, rest = settings.broker.partition("://")
    if scheme in ("amqp", "amqps"):
        return RabbitBroker(
            settings.broker,
            heartbeat=settings.heartbeat,
            confirm_timeout=settings.confirm_timeout,
            name=purpose,
            ssl_context=_ssl_context(settings) if scheme == "amqps" else None,
            certificate_user=settings.broker_user,
        )
    if scheme == "sqlite":
        return await EmbeddedBroker.open(_file(rest, "INGEST_BROKER_URL"))
    raise ConfigurationError("INGEST_BROKER_URL must begin with amqp://, amqps:// or sqlite:///")


def need_rabbitmq(settings: Settings, command: str) -> None:
    """Raises ConfigurationError where several processes would have to share the embedded queue."""
    if settings.broker.startswith("sqlite:"):
        raise ConfigurationError(
            f"`ingest {command}` needs RabbitMQ: set INGEST_BROKER_URL=amqp://…, or use `ingest dev`, which has both "
            "sides of the embedded queue in one process"
        )


def _file(rest: str, variable: str) -> Path:
    """`sqlite:///relative/file` or `sqlite:////absolute/file`, as SQLAlchemy has it."""
    if not rest.startswith("/") or len(rest) < 2:
        raise ConfigurationError(f"{variable} must look like sqlite:///FILE (with four slashes for an absolute path)")
    return Path(rest[1:])


def _ssl_context(settings: Settings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.broker_cafile)
        if settings.broker_certfile:
            context.load_cert_chain(settings.broker_certfile, settings.broker_keyfile)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"INGEST_BROKER_CAFILE, _CERTFILE or _KEYFILE cannot be used: {error}") from error
    return context
