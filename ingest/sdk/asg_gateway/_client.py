"""The synchronous client."""

import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import httpx

from asg_gateway import _protocol
from asg_gateway._connections import MAX_CONNECTIONS, Connections
from asg_gateway._errors import indexes_from, resumable
from asg_gateway._pace import Pace
from asg_gateway._results import BatchResult, TaskResult, joined
from asg_gateway._retry import DEADLINE, MAX_RETRIES, TIMEOUT, Attempts, Limits
from asg_gateway._tasks import key_or_new


class ASGGatewayClient:
    """Submits tasks; safe to share between threads and with forked processes.

    Connection errors, 408, 409, 429 and 5xx are retried, with a backoff that respects `Retry-After`. That is safe,
    because every submission has an idempotency key; if none is given, one is generated per call. After a 429, all
    submissions of the client wait for `Retry-After`, and then keep to the rate that the gateway states.

    Args:
        api_key: the API key.
        base_url: the gateway's URL. With `http` the key is sent unencrypted; use it only on loopback or trusted
            networks.
        timeout: seconds to wait for a connection, and for each read and write.
        max_retries: attempts after the first one.
        deadline: seconds for one request, from its first attempt to the last byte of its answer, with all retries and
            pauses. Each part of a split batch is a request. Not bounded: resolving the host name.
        max_connections: how many calls may be in progress. Further calls wait for their turn; neither `timeout` nor
            `deadline` counts this wait.
        transport: an httpx transport, instead of that of the SDK. With it the deadline bounds only each read
            and write, and a client that was used before `os.fork` cannot be used after it.
        sleep: waits so many seconds between attempts.

    Raises:
        ValueError: an argument or a proxy variable is invalid; the message says what it must be.
    """

    def __init__(
        self,
        api_key: str,
        *,
        base_url: str = _protocol.BASE_URL,
        timeout: float = TIMEOUT,
        max_retries: int = MAX_RETRIES,
        deadline: float = DEADLINE,
        max_connections: int = MAX_CONNECTIONS,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._limits = Limits(timeout, max_retries, deadline)
        options = _protocol.client_options(api_key, base_url)
        self._base_url = base_url
        self._connections = Connections(options, max_connections, transport)
        self._sleep = sleep
        self._pace = Pace()

    def submit_task(
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
            ASGGatewayError: the task was not accepted, or that is unknown; its `idempotency_key` makes a repeat safe.
            ValueError: the key is empty, or JSON cannot represent a value.
            TypeError: JSON cannot represent a type.
        """
        key = key_or_new(idempotency_key)
        call = _protocol.task_call(task_type, data_url, label_spec, consensus_threshold, callback_url, key)
        with resumable(key):
            return _protocol.task_result(self._send(call))

    def submit_batch(
        self,
        tasks: Sequence[Mapping[str, Any]],
        *,
        callback_url: str | None = None,
        idempotency_key: str | None = None,
    ) -> BatchResult:
        """Submit tasks, all or nothing. Above 1,000 tasks or 8 MiB they are sent in parts, each all or nothing.

        Raises:
            PartialBatchError: some parts were accepted and one was not, or that is unknown.
            ASGGatewayError: nothing was accepted, or that is unknown; its `idempotency_key` makes a repeat safe.
            ValueError: the key is empty, a task exceeds 8 MiB, or JSON cannot represent a value. Nothing was sent.
            TypeError: JSON cannot represent a type. Nothing was sent.
        """
        key = key_or_new(idempotency_key)
        accepted: list[BatchResult] = []
        with resumable(key, accepted):
            for call in _protocol.batch_calls(tasks, callback_url, key):
                with indexes_from(call.first_index):
                    accepted.append(_protocol.batch_result(self._send(call)))
        return joined(accepted)

    def get_task(self, task_id: str) -> TaskResult:
        """Look up a task by its id. Raises NotFoundError if it was not accepted."""
        return _protocol.task_result(self._send(_protocol.task_lookup(task_id)))

    def get_batch(self, batch_id: str) -> BatchResult:
        """Look up a batch by its id, all parts of a split one. Raises NotFoundError if one was not accepted."""
        return joined([_protocol.batch_result(self._send(call)) for call in _protocol.batch_lookups(batch_id)])

    def close(self) -> None:
        """Close the connections."""
        self._connections.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(base_url={self._base_url!r})"

    def _send(self, call: _protocol.Call) -> httpx.Response:
        with self._connections.slot() as http:
            # The gateway does not limit look-ups.
            pace = self._pace if call.method == "POST" else None
            attempts = Attempts(self._limits, self._base_url, pace=pace)
            pause: float | None = 0.0
            while pause is not None:
                for seconds in attempts.waits(pause):
                    self._sleep(seconds)
                try:
                    response = http.request(
                        call.method,
                        call.path,
                        content=call.content,
                        headers=call.headers,
                        timeout=attempts.timeout(),
                        extensions={"deadline": attempts.end},
                    )
                except httpx.RequestError as error:
                    pause = attempts.failed(error)
                else:
                    pause = attempts.answered(response)
            return response
