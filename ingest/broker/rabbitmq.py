"""RabbitMQ behind `domain.ports.Broker`. Works on 3.10 to 4.x."""

import itertools
import re
import ssl
from typing import Final
from urllib.parse import quote

import aio_pika
import aiormq
from yarl import URL

from ingest.broker.amqp_wire import CONNECT_TIMEOUT, Wire
from ingest.broker.rabbitmq_consumer import RabbitConsumer
from ingest.broker.rabbitmq_publisher import RabbitPublisher
from ingest.domain import topology
from ingest.domain.errors import BrokerUnavailable, ConfigurationError
from ingest.domain.ports import ConnectionState

_URL: Final = re.compile(r"(?P<scheme>amqps?)://(?:(?P<userinfo>[^@/]*)@)?(?P<hosts>[^/?@]+)(?P<rest>[/?].*)?")

_ISOLATED: Final = frozenset(queue.name for queue in topology.QUEUES if queue.dead_letter_exchange is not None)


class RabbitBroker:
    """`domain.ports.Broker` on RabbitMQ. Nothing connects before the first call.

    Args:
        url: `amqp[s]://user:password@host:5672,host2:5672/vhost`; further hosts are tried in turn.
        heartbeat: seconds; a silent connection is dropped after (heartbeat + 1) * 3.
        confirm_timeout: seconds a publish waits for its confirm.
        name: the connections' name, as operators see it.
        ssl_context: for amqps; by default the system's trust store.

    Raises:
        ConfigurationError: the URL is not of that form.
    """

    def __init__(
        self,
        url: str,
        *,
        heartbeat: int = 10,
        confirm_timeout: float = 5.0,
        name: str = "ingest",
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._urls = parse_urls(url)
        self._hosts = itertools.cycle(self._urls)
        self._heartbeat = heartbeat
        self._confirm_timeout = confirm_timeout
        self._name = name
        self._ssl_context = ssl_context
        self._links: list[RabbitPublisher | RabbitConsumer] = []

    @property
    def user(self) -> str | None:
        """The user that the broker sees; None where a client certificate decides."""
        url = self._urls[0]
        return None if url.query.get("auth", "").lower() == "external" else (url.user or "guest")

    def connections(self) -> list[ConnectionState]:
        return [link.state() for link in self._links]

    async def declare(self) -> None:
        error: Exception | None = None
        for url in self._urls:
            try:
                connection = await aio_pika.connect(url, timeout=CONNECT_TIMEOUT, ssl_context=self._ssl_context)
            except (aiormq.exceptions.AMQPError, OSError, TimeoutError) as why:
                error = why
                continue
            async with connection:
                await self._declare_on(connection)
            return
        raise BrokerUnavailable(f"cannot connect to RabbitMQ at {_names(self._urls)}: {error or 'no answer'}")

    async def publisher(self) -> RabbitPublisher:
        publisher = RabbitPublisher(lambda: self._wire("publish"), self.user, self._confirm_timeout)
        self._links.append(publisher)
        await publisher.start()
        return publisher

    async def consumer(self, queue: str, prefetch: int) -> RabbitConsumer:
        consumer = RabbitConsumer(lambda: self._wire(f"consume {queue}"), queue, prefetch, isolate=queue in _ISOLATED)
        self._links.append(consumer)
        await consumer.start()
        return consumer

    async def close(self) -> None:
        for link in self._links:
            await link.close()

    def _wire(self, purpose: str) -> Wire:
        return Wire(next(self._hosts), f"{self._name} {purpose}", self._heartbeat, self._ssl_context)

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
            raise BrokerUnavailable(f"RabbitMQ at {_names(self._urls)} went away: {error}") from error


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


def vhost_path(vhost: str) -> str:
    """A virtual host as the path of a URL."""
    return "/" + quote(vhost, safe="")


def _names(urls: list[URL]) -> str:
    return ", ".join(f"{url.host}:{url.port or 5672}" for url in urls)
