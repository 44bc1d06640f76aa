"""RabbitMQ as `domain.ports.Broker`. `versions` says which versions, and how they differ."""

import asyncio
import itertools
import random
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, cast

import aio_pika
import aiormq
import msgspec
from yarl import URL

from ingest.broker.rabbitmq.amqp.connection import CONNECT_ERRORS, CONNECT_TIMEOUT, Connection, connect_problem
from ingest.broker.rabbitmq.consumer import RabbitConsumer
from ingest.broker.rabbitmq.delivery_memory import DeliveryMemory
from ingest.broker.rabbitmq.publisher import RabbitPublisher
from ingest.broker.rabbitmq.publisher_pool import PublisherPool
from ingest.broker.rabbitmq.versions import parse, version_of
from ingest.domain import topology
from ingest.domain.errors import BrokerUnavailable, ConfigurationError, cause_of
from ingest.domain.ports import ConnectionState, Publisher
from ingest.urls import BROKER_EXAMPLE, parse_multi_host_url, parse_options

_DEAD_LETTERS_LIMIT: Final = 16 * 1024 * 1024
"""Bytes of small dead letters in progress, and of larger ones. The consumer of ingest.dead is a command."""


class BrokerInfo(msgspec.Struct, frozen=True):
    """What any client can see of a broker.

    `heartbeat` is the negotiated one, in seconds. `queues` maps a name to (ready messages, consumers), or to None if
    the queue does not exist.
    """

    version: str
    heartbeat: int
    queues: dict[str, tuple[int, int] | None]

    @property
    def major(self) -> int:
        """The first number of the version; 0 if it is unknown."""
        return parse(self.version)[0]


class RabbitBroker:
    """`domain.ports.Broker` on RabbitMQ. It connects at the first call.

    Args:
        url: `amqp[s]://user:password@host:5672,host2:5672/vhost`. Hosts are tried in turn from a random one
            on, so that processes spread over the nodes of a cluster.
        heartbeat: seconds. A silent connection is dropped after (heartbeat + 1) * 3.
        confirm_timeout: seconds that a publish waits for its confirm.
        name: the name of the connections that operators see.
        ssl_context: for amqps; by default the system's trust store.
        certificate_user: the user that RabbitMQ takes from the client certificate, with `?auth=external` in the URL.
        layout: how many queues `declare` declares.

    Raises:
        ConfigurationError: the URL is invalid or does not match `certificate_user`.
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
        layout: topology.Layout = topology.DEFAULT,
    ) -> None:
        self.layout = layout
        self._urls = parse_urls(url)
        self._user = _user(self._urls[0], certificate_user)
        start = random.randrange(len(self._urls))  # noqa: S311 - not a secret
        self._hosts = itertools.cycle([*self._urls[start:], *self._urls[:start]])
        self._heartbeat = heartbeat
        self._confirm_timeout = confirm_timeout
        self._name = name
        self._ssl_context = ssl_context
        self._channels: list[RabbitPublisher | RabbitConsumer] = []
        self._memory = DeliveryMemory()

    @property
    def user(self) -> str:
        """The AMQP user of the connections."""
        return self._user

    @property
    def hosts(self) -> list[str]:
        """The names or IP addresses of the URL."""
        return [url.host or "" for url in self._urls]

    def connections(self) -> list[ConnectionState]:
        self._channels = [channel for channel in self._channels if not channel.is_closed]
        return [channel.state() for channel in self._channels]

    async def connect(self) -> aio_pika.abc.AbstractConnection:
        """Open a plain aio-pika connection, which the caller closes. Raises BrokerUnavailable."""
        last_error: Exception | None = None
        for url in [url.update_query(heartbeat=str(self._heartbeat)) for url in self._urls]:
            try:
                return await aio_pika.connect(url, timeout=CONNECT_TIMEOUT, ssl_context=self._ssl_context)
            except CONNECT_ERRORS as error:
                last_error = error
        raise BrokerUnavailable(f"cannot connect to {self}: {connect_problem(last_error, self._urls[-1])}")

    async def inspect(self, queues: Iterable[str] = ()) -> BrokerInfo:
        """Return version, negotiated heartbeat, and the depth of queues.

        Raises BrokerUnavailable, or ConfigurationError if the user may not use a queue (RabbitMQ 4.3 checks that).
        """
        async with await self.connect() as connection:
            depths: dict[str, tuple[int, int] | None] = {}
            try:
                for name in queues:
                    depths[name] = await _depth(connection, name)
            except aiormq.exceptions.ChannelAccessRefused as error:
                raise ConfigurationError(
                    f"RabbitMQ user {self.user} may not use queue {name}, so it is not the service's user"
                ) from error
            except (aiormq.exceptions.AMQPError, OSError, RuntimeError, TimeoutError) as error:
                raise BrokerUnavailable(f"{self} does not report its queues: {cause_of(error)}") from error
            transport = cast("aiormq.Connection", connection.transport and connection.transport.connection)
            version = version_of(transport.server_properties)
            return BrokerInfo(version, transport.connection_tune.heartbeat or 0, depths)

    async def declare(self) -> None:
        await self._change(lambda channel: _declare_as_before(channel, self.layout))

    async def declare_all(self, queues: Sequence[topology.Queue]) -> None:
        """Declare all exchanges, also asg.unmatched, which needs its policy (`provisioning`), and these queues.

        Raises as `declare`.
        """
        await self._change(lambda channel: _declare(channel, topology.EXCHANGES, queues))

    async def declare_queues(self, queues: Sequence[topology.Queue]) -> None:
        """Declare further queues without their bindings. Raises as `declare`."""
        await self._change(lambda channel: _declare_queues(channel, queues))

    async def bind(self, queues: Sequence[topology.Queue]) -> None:
        """Bind queues that exist. Raises as `declare`."""
        await self._change(lambda channel: _bind(channel, queues))

    async def unbind(self, queues: Sequence[topology.Queue]) -> None:
        """Remove the bindings of queues that exist. Raises as `declare`."""
        await self._change(lambda channel: _unbind(channel, queues))

    async def delete(self, queues: Sequence[topology.Queue]) -> int:
        """Delete queues with what they contain; return how many messages that were. Raises as `declare`."""
        deleted = 0

        async def delete(channel: aio_pika.abc.AbstractChannel) -> None:
            nonlocal deleted
            for queue in queues:
                deleted += (await channel.queue_delete(queue.name)).message_count or 0

        await self._change(delete)
        return deleted

    async def depths(self, queues: Sequence[str]) -> dict[str, int | None]:
        try:
            depths = (await self.inspect(queues)).queues
        except ConfigurationError as error:
            raise BrokerUnavailable(str(error)) from error
        return {name: None if depth is None else depth[0] for name, depth in depths.items()}

    async def publisher(self, connections: int = 1) -> Publisher:
        publishers = [self._new_publisher("publish" if n == 1 else f"publish {n}") for n in range(1, connections + 1)]
        self._channels += publishers
        await asyncio.gather(*[publisher.start() for publisher in publishers])
        return publishers[0] if connections == 1 else PublisherPool(publishers)

    def _new_publisher(self, purpose: str) -> RabbitPublisher:
        return RabbitPublisher(lambda: self._new_connection(purpose), purpose, self.user, self._confirm_timeout)

    async def consumer(self, queue: str, prefetch: int) -> RabbitConsumer:
        consumer = RabbitConsumer(
            lambda: self._new_connection(f"consume {queue}"),
            queue,
            prefetch,
            isolate=_is_ingest_queue(queue),
            memory=self._memory_for(queue),
        )
        self._channels.append(consumer)
        await consumer.start()
        return consumer

    def _memory_for(self, queue: str) -> DeliveryMemory | None:
        if queue == topology.INGEST_DEAD:
            return DeliveryMemory(_DEAD_LETTERS_LIMIT)
        return self._memory if _is_ingest_queue(queue) else None

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()

    def _new_connection(self, purpose: str) -> Connection:
        return Connection(next(self._hosts), f"{self._name} {purpose}", self._heartbeat, self._ssl_context)

    async def _change(self, change: Callable[[aio_pika.abc.AbstractChannel], Awaitable[None]]) -> None:
        """Change the topology. Raises as `declare`."""
        try:
            async with await self.connect() as connection:
                await change(await connection.channel())
        except aiormq.exceptions.ChannelPreconditionFailed as error:
            raise ConfigurationError(
                f"a part of the topology exists on RabbitMQ with other arguments: {error}. Move its messages, delete "
                "it, then run `ingest topology apply`"
            ) from error
        except aiormq.exceptions.ChannelAccessRefused as error:
            raise ConfigurationError(f"RabbitMQ user {self.user} may not change the topology: {error}") from error
        except aiormq.exceptions.ChannelNotFoundEntity as error:
            raise ConfigurationError(
                f"a part of the topology is missing: {error}. Run `ingest topology apply`"
            ) from error
        except (aiormq.exceptions.AMQPError, OSError, TimeoutError) as error:
            raise BrokerUnavailable(f"the connection to {self} was lost: {cause_of(error)}") from error

    def __str__(self) -> str:
        return f"RabbitMQ at {', '.join(f'{url.host}:{url.port or 5672}' for url in self._urls)}"


def parse_urls(url: str) -> list[URL]:
    """Return one URL per host. Raises ConfigurationError, whose message never contains the password."""
    parsed = parse_multi_host_url(url, "INGEST_BROKER_URL", BROKER_EXAMPLE)
    if parsed.scheme not in ("amqp", "amqps"):
        raise ConfigurationError(f"INGEST_BROKER_URL must begin with amqp:// or amqps://, for example {BROKER_EXAMPLE}")
    _check_options(parsed.query or "")
    hosts = parsed.hosts()
    user, password = hosts[0]["username"], hosts[0]["password"]
    userinfo = "" if user is None else f"{user}@" if password is None else f"{user}:{password}@"
    path = f"{parsed.path or '/'}{f'?{parsed.query}' if parsed.query else ''}"
    return [
        URL(f"{parsed.scheme}://{userinfo}{host['host']}{':{}'.format(host['port']) if host['port'] else ''}{path}")
        for host in hosts
    ]


def _check_options(query: str) -> None:
    """Raise ConfigurationError for options that are not understood. aiormq knows others, which would be ignored."""
    try:
        options = parse_options(query, frozenset({"auth"}), "INGEST_BROKER_URL")
    except ConfigurationError as error:
        raise ConfigurationError(f"{error}. Certificates are settings of their own: INGEST_BROKER_CAFILE") from error
    if options.get("auth", "plain").lower() not in ("plain", "external"):
        raise ConfigurationError("INGEST_BROKER_URL: auth must be plain or external")


def _user(url: URL, certificate_user: str | None) -> str:
    """Return the connection's user. Published messages name it, and RabbitMQ refuses every other name."""
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


def _is_ingest_queue(name: str) -> bool:
    shared = (topology.INGEST_TASKS, topology.INGEST_BATCHES)
    return name in shared or topology.is_admitted_queue(name) or name.startswith(topology.OWN_PREFIX)


async def _declare(
    channel: aio_pika.abc.AbstractChannel, exchanges: Sequence[str], queues: Sequence[topology.Queue]
) -> None:
    for name in exchanges:
        await channel.declare_exchange(name, aio_pika.ExchangeType.TOPIC, durable=True)
    await _declare_queues(channel, queues)
    await _bind(channel, queues)
    await _unbind(channel, topology.OBSOLETE_BINDINGS)  # after the bindings that replace them


async def _declare_queues(channel: aio_pika.abc.AbstractChannel, queues: Sequence[topology.Queue]) -> None:
    for queue in queues:
        await channel.declare_queue(queue.name, durable=True, arguments=queue.arguments)


async def _bind(channel: aio_pika.abc.AbstractChannel, queues: Sequence[topology.Queue]) -> None:
    for queue in queues:
        await (await channel.get_queue(queue.name, ensure=False)).bind(queue.exchange, queue.binding)


async def _unbind(channel: aio_pika.abc.AbstractChannel, queues: Sequence[topology.Queue]) -> None:
    for queue in queues:
        await (await channel.get_queue(queue.name, ensure=False)).unbind(queue.exchange, queue.binding)


async def _declare_as_before(channel: aio_pika.abc.AbstractChannel, layout: topology.Layout) -> None:
    """Declare the topology, and keep the arrangement of the producers' queues.

    asg.unmatched gets messages only by a policy, which AMQP cannot set. So until `provisioning` has made it, the shared
    queues are bound to asg.submissions itself.
    """
    separated = await _exists(channel, topology.UNMATCHED)
    exchanges = [name for name in topology.EXCHANGES if separated or name != topology.UNMATCHED]
    await _declare(channel, exchanges, layout.queues if separated else layout.not_separated)


async def _exists(channel: aio_pika.abc.AbstractChannel, exchange: str) -> bool:
    try:
        await channel.get_exchange(exchange, ensure=True)
    except aiormq.exceptions.ChannelNotFoundEntity:
        await channel.reopen()
        return False
    return True


async def _depth(connection: aio_pika.abc.AbstractConnection, name: str) -> tuple[int, int] | None:
    channel = await connection.channel()
    try:
        declared = await channel.declare_queue(name, passive=True, timeout=CONNECT_TIMEOUT)
    except aiormq.exceptions.ChannelNotFoundEntity:
        return None  # the error has closed the channel
    await channel.close()
    result = declared.declaration_result
    return result.message_count or 0, result.consumer_count or 0
