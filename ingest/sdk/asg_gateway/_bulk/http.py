"""Sends chunks over HTTP."""

import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from asg_gateway._async_client import AsyncASGGatewayClient
from asg_gateway._bulk.items import Item
from asg_gateway._bulk.options import Options, UsageError
from asg_gateway._bulk.progress import Counts
from asg_gateway._bulk.transport import Accepted, Sender

_TIMEOUT: Final = 60.0
_RETRIES: Final = 1_000_000
"""`--patience` ends the retries."""


class HttpSender:
    """Sends batches with a client. `callback_url` is for each task without one."""

    def __init__(self, client: AsyncASGGatewayClient, callback_url: str | None) -> None:
        self._client = client
        self._callback_url = callback_url

    async def send(self, items: Sequence[Item], key: str) -> list[Accepted]:
        tasks = [item.task for item in items]
        result = await self._client.submit_batch(tasks, callback_url=self._callback_url, idempotency_key=key)
        return [(result, items)]

    def notice(self) -> str | None:
        if self._client._pace.refusals:  # noqa: SLF001 - same package
            return "the gateway limits the rate of submissions: chunks wait for their turn"
        return None


class HttpTransport:
    """Sends to the gateway at `--base-url`."""

    def __init__(self, options: Options) -> None:
        self._options = options

    @property
    def identity(self) -> Sequence[str]:
        options = self._options
        key = hashlib.sha256(options.api_key.encode()).hexdigest()
        return [options.base_url, key, options.callback_url or ""]

    def counts(self) -> Counts:
        return Counts()

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Sender]:
        options = self._options
        try:
            client = AsyncASGGatewayClient(
                options.api_key,
                base_url=options.base_url,
                timeout=_TIMEOUT,
                max_retries=_RETRIES,
                deadline=options.patience,
                max_connections=options.concurrency,
            )
        except ValueError as error:  # the API key, the URL or a proxy variable
            raise UsageError(str(error)) from error
        async with client:
            yield HttpSender(client, options.callback_url)

    def conclusion(self, counts: Counts) -> str | None:
        return None
