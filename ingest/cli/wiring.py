"""What operator commands open: the management API, and the dead letters of whichever broker is set."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import msgspec

from ingest import bootstrap
from ingest.broker.embedded import USER, EmbeddedBroker
from ingest.broker.embedded_dead import EmbeddedDeadLetters
from ingest.broker.management import Management
from ingest.broker.rabbitmq import RabbitBroker
from ingest.broker.rabbitmq_dead import RabbitDeadLetters
from ingest.domain.errors import ConfigurationError
from ingest.domain.ports import DeadLetterQueue, Publisher
from ingest.settings import Settings


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
async def dead_letters(loaded: Settings, *, clear: bool) -> AsyncIterator[Dead]:
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
        return await bootstrap.open_broker(loaded, "ingest dlq")
    except ConfigurationError as error:
        if path is None or "in use" not in str(error):
            raise
        raise ConfigurationError(
            f"{path} is in use by a running `ingest dev`: stop it first. `ingest dlq list`, `show` and `export` work "
            "beside it"
        ) from error
