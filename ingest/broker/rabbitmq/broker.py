"""RabbitMQ behind `domain.ports.Broker`. Works on 3.10 to 4.x."""

import asyncio
import itertools
import re
import ssl
from collections.abc import Iterable
from typing import Final, cast
from urllib.parse import quote

import aio_pika
import aiormq
import msgspec
from yarl import URL

from ingest.broker.rabbitmq.amqp.connection import CONNECT_TIMEOUT, Connection
from ingest.broker.rabbitmq.consumer import RabbitConsumer
from ingest.broker.rabbitmq.publisher import RabbitPublisher
from ingest.broker.rabbitmq.publisher_pool import PublisherPool
from ingest.domain import topology
from ingest.domain.errors import BrokerUnavailable, ConfigurationError
from ingest.domain.ports import ConnectionState, Publisher

_URL: Final = re.compile(r"(?P<scheme>amqps?)://(?:(?P<userinfo>[^@/]*)@)?(?P<hosts>[^/?@]+)(?P<rest>[/?].*)?")

_ISOLATED: Final = frozenset(queue.name for queue in topology.QUEUES if queue.dead_letter_exchange is not None)


class BrokerInfo(msgspec.Struct, frozen=True):
    """What any client may see of a broker. `queues`: name to (ready messages, consumers), None where it is missing."""

    version: str
    heartbeat: int
    queues: dict[str, tuple[int, int] | None]

    @property
    def major(self) -> int:
        """The first number of the version; 0 where it tells none."""
        first = self.version.partition(".")[0]
        return int(first) if first.isdigit() else 0


class RabbitBroker:
    """`domain.ports.Broker` on RabbitMQ. Nothing connects before the first call.

    Args:
        url: `amqp[s]://user:password@host:5672,host2:5672/vhost`; further hosts are tried in turn.
        heartbeat: seconds; a silent connection is dropped after (heartbeat + 1) * 3.
        confirm_timeout: seconds a publish waits for its confirm.
        name: the connections' name, as operators see it.
        ssl_context: for amqps; by default the system's trust store.
        certificate_user: whom RabbitMQ takes the client certificate for, with `?auth=external` in the URL.

    Raises:
        ConfigurationError: the URL is not of that form, or does not go with `certificate_user`.
    """

    def __init__(
        self,
        url: str,
        *,
        heartbeat: int = 10,
        confirm_timeout: float = 5.0,
        name: str = "ingest",
        ssl_context: ssl.SSLContext | None = None,
        certificate_user: str | None = None,
    ) -> None:
        self._urls = parse_urls(url)
        self._user = _user(self._urls[0], certificate_user)
        self._hosts = itertools.cycle(self._urls)
        self._heartbeat = heartbeat
        self._confirm_timeout = confirm_timeout
        self._name = name
        self._ssl_context = ssl_context
        self._links: list[RabbitPublisher | RabbitConsumer] = []

    @property
    def user(self) -> str:
        """The user that the broker sees."""
        return self._user

    def connections(self) -> list[ConnectionState]:
        return [link.state() for link in self._links]

    async def connect(self) -> aio_pika.abc.AbstractConnection:
        """A connection for what is not done once a message; the caller closes it. Raises BrokerUnavailable."""
        error: Exception | None = None
        for url in [each.update_query(heartbeat=str(self._heartbeat)) for each in self._urls]:
            try:
                return await aio_pika.connect(url, timeout=CONNECT_TIMEOUT, ssl_context=self._ssl_context)
            except (aiormq.exceptions.AMQPError, OSError, TimeoutError) as why:
                error = why
        raise BrokerUnavailable(f"cannot connect to {self}: {error or 'no answer'}")

    async def inspect(self, queues: Iterable[str] = ()) -> BrokerInfo:
        """Version, negotiated heartbeat in seconds, and the depth of queues. Raises BrokerUnavailable."""
        async with await self.connect() as connection:
            depths: dict[str, tuple[int, int] | None] = {}
            try:
                for name in queues:
                    depths[name] = await _depth(connection, name)
            except (aiormq.exceptions.AMQPError, OSError, TimeoutError) as error:
                raise BrokerUnavailable(f"{self} does not tell about its queues: {error}") from error
            transport = cast("aiormq.Connection", connection.transport and connection.transport.connection)
            version = transport.server_properties.get("version", "")
            return BrokerInfo(_text(version), transport.connection_tune.heartbeat or 0, depths)

    async def declare(self) -> None:
        async with await self.connect() as connection:
            await self._declare_on(connection)

    async def publisher(self, connections: int = 1) -> Publisher:
        publishers = [self._new_publisher("publish" if n == 1 else f"publish {n}") for n in range(1, connections + 1)]
        self._links += publishers
        await asyncio.gather(*[each.start() for each in publishers])
        return publishers[0] if connections == 1 else PublisherPool(publishers)

    def _new_publisher(self, what: str) -> RabbitPublisher:
        return RabbitPublisher(lambda: self._wire(what), what, self.user, self._confirm_timeout)

    async def consumer(self, queue: str, prefetch: int) -> RabbitConsumer:
        consumer = RabbitConsumer(lambda: self._wire(f"consume {queue}"), queue, prefetch, isolate=queue in _ISOLATED)
        self._links.append(consumer)
        await consumer.start()
        return consumer

    async def close(self) -> None:
        for link in self._links:
            await link.close()

    def _wire(self, purpose: str) -> Connection:
        return Connection(next(self._hosts), f"{self._name} {purpose}", self._heartbeat, self._ssl_context)

    async def _declare_on(self, connection: aio_pika.abc.AbstractConnection) -> None:
        what = ""
        try:
            channel = await connection.channel()
            for what in topology.EXCHANGES:
                await channel.declare_exchange(what, aio_pika.ExchangeType.TOPIC, durable=True)
            for queue in topology.QUEUES:
                what = queue.name
                declared = await channel.declare_queue(what, durable=True, arguments={"x-queue-type": "quorum"})
                await declared.bind(queue.exchange, queue.binding)
        except aiormq.exceptions.ChannelPreconditionFailed as error:
            raise ConfigurationError(
                f"{what} exists on RabbitMQ with other arguments: {error}. Move its messages and delete it, then "
                "run `ingest topology apply`"
            ) from error
        except aiormq.exceptions.ChannelAccessRefused as error:
            raise ConfigurationError(f"RabbitMQ user {self.user} may not declare {what}: {error}") from error
        except (aiormq.exceptions.AMQPError, OSError, TimeoutError) as error:
            raise BrokerUnavailable(f"{self} went away: {error}") from error

    def __str__(self) -> str:
        return f"RabbitMQ at {', '.join(f'{url.host}:{url.port or 5672}' for url in self._urls)}"


def parse_urls(url: str) -> list[URL]:
    """One URL a host. Raises ConfigurationError, without the password."""
    match = _URL.fullmatch(url)
    if match is None:
        raise ConfigurationError("the broker URL must look like amqp://user:password@host:5672,host2:5672/vhost")
    userinfo = f"{match['userinfo']}@" if match["userinfo"] else ""
    try:
        return [
            URL(f"{match['scheme']}://{userinfo}{host}{match['rest'] or '/'}") for host in match["hosts"].split(",")
        ]
    except ValueError as error:
        raise ConfigurationError(f"the broker URL has a bad host or port: {match['hosts']}") from error


def _user(url: URL, certificate_user: str | None) -> str:
    """Published messages name it, and RabbitMQ refuses any other than the connection's own."""
    if url.query.get("auth", "").lower() == "external":
        if url.scheme != "amqps":
            raise ConfigurationError("INGEST_BROKER_URL with ?auth=external must begin with amqps://")
        if not certificate_user:
            raise ConfigurationError(
                "INGEST_BROKER_URL has ?auth=external: set INGEST_BROKER_USER to the name that RabbitMQ takes from the "
                "client certificate (rabbitmq.conf: ssl_cert_login_from)"
            )
        return certificate_user
    if certificate_user:
        raise ConfigurationError(
            "INGEST_BROKER_USER is for client certificates: add ?auth=external to INGEST_BROKER_URL, or leave it out"
        )
    return url.user or "guest"


def vhost_path(vhost: str) -> str:
    """A virtual host as the path of a URL."""
    return "/" + quote(vhost, safe="")


async def _depth(connection: aio_pika.abc.AbstractConnection, name: str) -> tuple[int, int] | None:
    channel = await connection.channel()
    try:
        declared = await channel.declare_queue(name, passive=True, timeout=CONNECT_TIMEOUT)
    except aiormq.exceptions.ChannelNotFoundEntity:
        return None  # it has closed the channel
    await channel.close()
    result = declared.declaration_result
    return result.message_count or 0, result.consumer_count or 0


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
