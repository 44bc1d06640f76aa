"""The asynchronous client: the blocking one, awaited."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import httpx

from asg_gateway import _protocol as protocol
from asg_gateway._errors import resumable
from asg_gateway._results import BatchResult, TaskResult, joined
from asg_gateway._retry import DEADLINE, MAX_RETRIES, TIMEOUT, Attempts, Limits
from asg_gateway._tasks import key_or_new


class AsyncASGGatewayClient:
    """Submits tasks; safe to share between tasks of one event loop.

    Connection errors, 408, 409, 429 and 5xx are retried, with backoff and as `Retry-After` asks. That is safe: every
    submission carries an idempotency key, made once a call where none is given.

    Args:
        api_key: as issued.
        base_url: of the gateway. With `http` the key travels unencrypted: for loopback and trusted networks.
        timeout: seconds to wait for a connection, and for each read and write.
        max_retries: attempts after the first.
        deadline: seconds for one request with all its retries; waits are cut to what is left of it.
        transport: httpx transport, e.g. for a proxy.
        sleep: waits between attempts.

    Raises:
        ValueError: an argument cannot be right; the message says what it must be.
    """

    def __init__(
        self,
        api_key: str,
        *,
        base_url: str = protocol.BASE_URL,
        timeout: float = TIMEOUT,
        max_retries: int = MAX_RETRIES,
        deadline: float = DEADLINE,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._limits = Limits(timeout, max_retries, deadline)
        self._http = httpx.AsyncClient(**protocol.client_options(api_key, base_url), transport=transport)
        self._sleep = sleep

    async def submit_task(
        self,
        *,
        task_type: str,
        data_url: str,
        label_spec: Mapping[str, Any],
        consensus_threshold: int | None = None,
        callback_url: str | None = None,
        idempotency_key: str | None = None,
    ) -> TaskResult:
        """Submit one task.

        Raises:
            ASGGatewayError: not accepted, or not known to be; its `idempotency_key` makes a repeat safe.
            ValueError: the empty key, or a value that JSON cannot hold (TypeError: a type).
        """
        key = key_or_new(idempotency_key)
        call = protocol.task_call(task_type, data_url, label_spec, consensus_threshold, callback_url, key)
        with resumable(key):
            return protocol.task_result(await self._send(call))

    async def submit_batch(
        self,
        tasks: Sequence[Mapping[str, Any]],
        *,
        callback_url: str | None = None,
        idempotency_key: str | None = None,
    ) -> BatchResult:
        """Submit tasks, all or none; above 1,000 tasks or 8 MiB in parts, each all or none.

        Raises:
            PartialBatchError: some parts were accepted and one was not, or is not known to be.
            ASGGatewayError: not accepted, or not known to be; its `idempotency_key` makes a repeat safe.
            ValueError: the empty key, a task above 8 MiB, or a value that JSON cannot hold (TypeError: a type).
                Nothing was sent.
        """
        key = key_or_new(idempotency_key)
        accepted: list[BatchResult] = []
        with resumable(key, accepted):
            for call in protocol.batch_calls(tasks, callback_url, key):
                accepted.append(protocol.batch_result(await self._send(call)))
        return joined(accepted)

    async def get_task(self, task_id: str) -> TaskResult:
        """Look a task up by id. Raises NotFoundError where it was not accepted."""
        return protocol.task_result(await self._send(protocol.lookup_call("task", task_id)))

    async def get_batch(self, batch_id: str) -> BatchResult:
        """Look a batch up by id. Raises NotFoundError where it was not accepted."""
        return protocol.batch_result(await self._send(protocol.lookup_call("batch", batch_id)))

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(base_url={str(self._http.base_url)!r})"

    async def _send(self, call: protocol.Call) -> httpx.Response:
        attempts = Attempts(self._limits)
        while True:
            try:
                response = await self._http.request(
                    call.method, call.path, content=call.content, headers=call.headers, timeout=attempts.timeout()
                )
            except httpx.RequestError as error:
                pause: float | None = attempts.failed(error)
            else:
                pause = attempts.answered(response)
            if pause is None:
                return response
            await self._sleep(pause)
