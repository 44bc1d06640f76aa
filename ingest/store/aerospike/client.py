"""The official client behind threads: addresses, time limits and errors. Knows nothing of what is stored."""

import asyncio
import contextlib
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeVar
from urllib.parse import parse_qs, unquote

import aerospike
import msgspec
from aerospike import exception as aerospike_errors
from aerospike_helpers.batch import records as batch

from ingest.domain.errors import ConfigurationError, StoreUnavailable

OK: Final = 0
NOT_FOUND: Final = 2
GENERATION: Final = 3
EXISTS: Final = 5
KEY_BUSY: Final = 14
FORBIDDEN: Final = 22
FILTERED_OUT: Final = 27
"""Result codes, https://aerospike.com/docs/develop/client/error-codes"""

_CHUNK: Final = 1000
"""Records in one call: some 10 ms of work for the client."""
_THREADS: Final = 4
_CONNECT_PAUSE: Final = 1.0
_URL: Final = re.compile(
    r"aerospike://(?:(?P<user>[^:@/]*):(?P<password>[^@/]*)@)?(?P<hosts>[^/?@]+)/(?P<namespace>[^/?]+)(?:\?(?P<query>.*))?"
)
_HOST: Final = re.compile(r"(?P<name>\[[0-9A-Fa-f:]+\]|[^:\[\]]+)(?::(?P<port>\d{1,5}))?")
_OPTIONS: Final = frozenset({"tls", "tls_name", "cafile", "certfile", "keyfile"})

T = TypeVar("T")


class Address(msgspec.Struct, frozen=True):
    """Where a cluster is: seed hosts as (name, port), namespace, credentials, options of the URL."""

    hosts: tuple[tuple[str, int], ...]
    namespace: str
    user: str | None
    password: str | None
    options: dict[str, str]

    def __repr__(self) -> str:
        return f"Aerospike at {', '.join(f'{name}:{port}' for name, port in self.hosts)}"


def parse_url(url: str) -> Address:
    """`aerospike://user:password@host:3000,host2:3000/namespace?tls=true&tls_name=…&cafile=…&certfile=…&keyfile=…`.

    Raises ConfigurationError, without the password.
    """
    match = _URL.fullmatch(url)
    if match is None:
        raise ConfigurationError("the store URL must look like aerospike://host:3000,host2:3000/namespace")
    hosts = []
    for text in match["hosts"].split(","):
        host = _HOST.fullmatch(text)
        if host is None or int(host["port"] or 3000) > 65535:
            raise ConfigurationError(f"the store URL has a bad host or port: {text}")
        hosts.append((host["name"].strip("[]"), int(host["port"] or 3000)))
    options = {name: values[-1] for name, values in parse_qs(match["query"] or "").items()}
    if unknown := sorted(options.keys() - _OPTIONS):
        raise ConfigurationError(f"the store URL has unknown options {unknown}; known are {sorted(_OPTIONS)}")
    user, password = match["user"], match["password"]
    return Address(tuple(hosts), match["namespace"], user and unquote(user), password and unquote(password), options)


class AerospikeClient:
    """Runs calls of the blocking client in a few threads.

    Args:
        address: of the cluster.
        timeout: seconds for one call, after which it is in doubt.
    """

    def __init__(self, address: Address, timeout: float) -> None:
        self.namespace = address.namespace
        self._address = address
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="aerospike")
        self._config = _config(address, timeout)
        self._client: Any = None
        self._connecting = asyncio.Lock()
        self._connected = False
        self._failed = (0.0, "")

    async def call(self, job: Callable[[Any], T]) -> T:
        """Run a job with the client, connected. Whatever the client raises becomes StoreUnavailable."""
        if not self._connected:
            await self._connect()
        return await self._run(job)

    async def _connect(self) -> None:
        """The client connects once and then keeps track of the cluster by itself."""
        async with self._connecting:
            if self._connected:
                return
            if time.monotonic() - self._failed[0] < _CONNECT_PAUSE:
                raise StoreUnavailable(self._failed[1])
            try:
                await self._run(self._make)
            except StoreUnavailable as error:
                self._failed = (time.monotonic(), str(error))
                raise
            self._connected = True

    def _make(self, _: Any) -> None:
        # Making one connects already, and raises where nobody is there.
        client = aerospike.client(self._config)
        client.connect()
        self._client = client

    async def _run(self, job: Callable[[Any], T]) -> T:
        try:
            pending = asyncio.get_running_loop().run_in_executor(self._threads, job, self._client)
        except RuntimeError as error:  # the threads have ended
            raise StoreUnavailable(f"{self._address!r} is closed") from error
        try:
            return await pending
        except aerospike_errors.AerospikeError as error:
            raise self.unavailable(error.code, error.msg) from error

    async def write(self, records: Sequence[Any]) -> None:
        """`batch_write`, in chunks; the outcome stands in each record. Raises StoreUnavailable."""
        for start in range(0, len(records), _CHUNK):
            chunk = batch.BatchRecords(list(records[start : start + _CHUNK]))
            await self.call(partial(_batch_write, chunk))
            self._check(chunk, len(chunk.batch_records))

    async def operate(
        self, keys: Sequence[tuple[str, str, str]], ops: list[dict[str, Any]], policy: dict[str, Any]
    ) -> list[int]:
        """The same writes for every key, which is cheaper; the result code of each. Raises StoreUnavailable."""
        codes: list[int] = []
        for start in range(0, len(keys), _CHUNK):
            chunk = list(keys[start : start + _CHUNK])
            done = await self.call(partial(_batch_operate, chunk, ops, policy))
            self._check(done, len(chunk))
            codes += [record.result for record in done.batch_records]
        return codes

    async def read(self, keys: Sequence[tuple[str, str, str]]) -> list[tuple[int, dict[str, Any]] | None]:
        """(generation, bins) of each record, None where there is none. Raises StoreUnavailable."""
        out: list[tuple[int, dict[str, Any]] | None] = []
        for start in range(0, len(keys), _CHUNK):
            chunk = list(keys[start : start + _CHUNK])
            found = await self.call(partial(_batch_read, chunk))
            self._check(found, len(chunk))
            for record in found.batch_records:
                if record.result == OK:
                    out.append((record.record[1]["gen"], record.record[2]))
                elif record.result == NOT_FOUND:
                    out.append(None)
                else:
                    raise self.unavailable(record.result, "read failed")
        return out

    def _check(self, done: Any, count: int) -> None:
        """Raises StoreUnavailable where the call failed as a whole.

        While the client knows no node of the cluster (a server that has hung for some seconds) it sends nothing and
        raises nothing: it leaves records out, or leaves them as they were made, and that is OK (seen with 19.3).
        """
        records = done.batch_records
        if len(records) != count or (done.result != OK and all(record.result == OK for record in records)):
            raise self.unavailable(done.result, "the cluster cannot be reached")

    def unavailable(self, code: int | None, message: object) -> StoreUnavailable:
        """The error for a result code, with what an operator can do about it."""
        hint = ""
        if code == FORBIDDEN:
            hint = "; is nsup-period of the namespace above 0? Otherwise records with a time to live are refused"
        elif code == aerospike_errors.DeviceOverload.code:
            hint = "; its device cannot keep up with the writes"
        return StoreUnavailable(f"{self._address!r}: {message} (code {code}){hint}")

    async def close(self) -> None:
        """Twice is fine. Calls under way end first: they use what the client frees."""
        self._connected = True  # not once more
        await asyncio.to_thread(partial(self._threads.shutdown, cancel_futures=True))
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(aerospike_errors.AerospikeError):
                await asyncio.to_thread(client.close)


def _batch_write(records: Any, client: Any) -> None:
    client.batch_write(records)


def _batch_operate(
    keys: list[tuple[str, str, str]], ops: list[dict[str, Any]], policy: dict[str, Any], client: Any
) -> Any:
    return client.batch_operate(keys, ops, None, policy)


def _batch_read(keys: list[tuple[str, str, str]], client: Any) -> Any:
    return client.batch_read(keys)


def _config(address: Address, timeout: float) -> dict[str, Any]:
    total = int(timeout * 1000)
    # Writes are not repeated by the client: its own first try would look like somebody else's claim or change.
    write = {"total_timeout": total, "socket_timeout": total, "max_retries": 0}
    read = {"total_timeout": total, "socket_timeout": total // 3, "max_retries": 2}
    config: dict[str, Any] = {
        "hosts": [(name, port, address.options.get("tls_name", name)) for name, port in address.hosts],
        "policies": {
            "login_timeout_ms": total,
            "read": read,
            "write": write,
            "operate": write,
            "remove": write,
            "batch": read,
            "batch_parent_write": write,
        },
    }
    if address.user:
        config |= {"user": address.user, "password": address.password or ""}
    options = address.options
    if options.get("tls", "false").lower() in ("1", "true", "yes"):
        named = {name: options[name] for name in ("cafile", "certfile", "keyfile") if name in options}
        config["tls"] = {"enable": True, **named}
    return config
