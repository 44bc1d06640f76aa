"""The official Aerospike client behind threads: addresses, time limits and errors. It does not know what is stored."""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeVar
from urllib.parse import unquote

import aerospike
import msgspec
from aerospike import exception as aerospike_errors
from aerospike import predicates
from aerospike_helpers.batch import records as batch

from ingest.domain.errors import ConfigurationError, StoreUnavailable
from ingest.store.aerospike import result_codes
from ingest.urls import STORE_EXAMPLE, parse_multi_host_url, parse_options

_CHUNK: Final = 1000
"""Records in one call; the client works on them for about 10 ms."""
_THREADS: Final = 4
_CONNECT_PAUSE: Final = 1.0
"""Seconds after a failed connection during which calls fail at once."""
_MAX_INDEXED: Final = 2**62
_DEFAULT_PORT: Final = 3000
_FILES: Final = ("cafile", "certfile", "keyfile")
_OPTIONS: Final = frozenset({"tls", "tls_name", *_FILES})
_TRUE: Final = frozenset({"true", "1", "yes"})
_FALSE: Final = frozenset({"false", "0", "no"})

T = TypeVar("T")
Record = tuple[dict[str, int], dict[str, Any]]
"""A record: `gen` (its version) and `ttl` (seconds until it expires), and its bins."""


class Address(msgspec.Struct, frozen=True):
    """The address of a cluster: seed hosts as (name, port), namespace, credentials, options of the URL."""

    hosts: tuple[tuple[str, int], ...]
    namespace: str
    user: str | None
    password: str | None
    options: dict[str, str]

    @property
    def tls(self) -> bool:
        """Whether connections use TLS."""
        return self.options.get("tls", "").lower() in _TRUE

    def __repr__(self) -> str:
        return f"Aerospike at {', '.join(f'{name}:{port}' for name, port in self.hosts)}"


def parse_url(url: str) -> Address:
    """Parse `aerospike://user:password@host:3000,host2:3000/namespace?tls=true&tls_name=…&cafile=…&certfile=…&keyfile=…`.

    Raises ConfigurationError, whose message never contains the password.
    """
    parsed = parse_multi_host_url(url, "INGEST_STORE_URL", STORE_EXAMPLE)
    namespace = unquote((parsed.path or "").removeprefix("/"))
    if parsed.scheme != "aerospike" or not namespace or "/" in namespace:
        raise ConfigurationError(f"INGEST_STORE_URL must look like {STORE_EXAMPLE}")
    hosts = parsed.hosts()
    seeds = tuple([((host["host"] or "").strip("[]"), host["port"] or _DEFAULT_PORT) for host in hosts])
    user, password = hosts[0]["username"], hosts[0]["password"]
    options = _options(parsed.query or "")
    return Address(seeds, namespace, user and unquote(user), password and unquote(password), options)


def _options(query: str) -> dict[str, str]:
    """Return the options in a URL's query. Raises ConfigurationError: they decide whether data crosses a network."""
    options = parse_options(query, _OPTIONS, "INGEST_STORE_URL")
    if options.get("tls", "false").lower() not in _TRUE | _FALSE:
        raise ConfigurationError(f"INGEST_STORE_URL: tls must be true or false, it is {options['tls']!r}")
    if options.get("tls", "false").lower() in _FALSE and (useless := sorted(options.keys() - {"tls"})):
        raise ConfigurationError(f"INGEST_STORE_URL: {useless[0]} needs tls=true, without it nothing is encrypted")
    if "keyfile" in options and "certfile" not in options:
        raise ConfigurationError("INGEST_STORE_URL: keyfile needs certfile, the certificate of the key")
    for name in _FILES:
        if name in options and not os.access(options[name], os.R_OK):
            raise ConfigurationError(f"INGEST_STORE_URL: {name}={options[name]} does not exist or cannot be read")
    return options


class AerospikeClient:
    """Runs calls of the blocking client in a few threads.

    Args:
        address: the address of the cluster.
        timeout: seconds for one call; after that its outcome is in doubt.
    """

    def __init__(self, address: Address, timeout: float) -> None:
        self.namespace = address.namespace
        self.hosts = len(set(address.hosts))
        self._address = address
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="aerospike")
        self._config = _config(address, timeout)
        self._client: Any = None
        self._connecting = asyncio.Lock()
        self._connected = False
        self._failed = (0.0, "")

    async def call(self, job: Callable[[Any], T]) -> T:
        """Run a job with the connected client. Every error of the client becomes StoreUnavailable."""
        if not self._connected:
            await self._connect()
        return await self._run(job)

    async def _connect(self) -> None:
        """Connect once; afterwards the client follows the cluster by itself."""
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
        # The constructor connects already, and raises if the cluster is unavailable.
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
        """Write records with `batch_write`, in chunks; each record then has its outcome. Raises StoreUnavailable."""
        answers = await self._in_chunks(records, _batch_write)
        for record, answer in zip(records, answers, strict=True):
            if answer is None:
                record.result, record.in_doubt = result_codes.NO_RESPONSE, True

    async def operate(
        self, keys: Sequence[tuple[str, str, str]], ops: list[dict[str, Any]], policy: dict[str, Any]
    ) -> list[int]:
        """Make the same writes for every key, which is cheaper; return the result codes. Raises StoreUnavailable."""
        answers = await self._in_chunks(keys, partial(_batch_operate, ops, policy))
        return [result_codes.NO_RESPONSE if answer is None else answer.result for answer in answers]

    async def read(
        self, keys: Sequence[tuple[str, str, str]], bins: Sequence[str] | None = None
    ) -> list[Record | None]:
        """Return each record, with all bins or some; None if it does not exist. Raises StoreUnavailable."""
        records: list[Record | None] = []
        for record in await self.try_read(keys, bins):
            if isinstance(record, int):
                raise self.unavailable(record, "reading a record failed")
            records.append(record)
        return records

    async def try_read(
        self, keys: Sequence[tuple[str, str, str]], bins: Sequence[str] | None = None
    ) -> list[Record | int | None]:
        """Return records as `read` does, but the result code of a record that cannot be read.

        Raises StoreUnavailable if the whole call fails.
        """
        records: list[Record | int | None] = []
        for answer in await self._in_chunks(keys, partial(_batch_read, bins)):
            if answer is None:
                records.append(result_codes.NO_RESPONSE)
            elif answer.result == result_codes.OK:
                records.append((answer.record[1], answer.record[2]))
            else:
                records.append(None if answer.result == result_codes.NOT_FOUND else answer.result)
        return records

    async def _in_chunks(self, items: Sequence[T], job: Callable[[list[T], Any], Any]) -> list[Any]:
        """Run a batch job for chunks of items; return what the client says about each item, in order.

        If a chunk fails as a whole, StoreUnavailable is raised, unless an earlier one was answered: then its items and
        the remaining ones are None.
        """
        answers: list[Any] = []
        for start in range(0, len(items), _CHUNK):
            chunk = list(items[start : start + _CHUNK])
            try:
                answer = await self.call(partial(job, chunk))
                self._check(answer, len(chunk))
            except StoreUnavailable:
                if not answers:
                    raise
                return answers + [None] * (len(items) - start)
            answers += answer.batch_records
        return answers

    async def query(self, set_name: str, bin_name: str, filter_: Any) -> list[tuple[int, dict[str, Any]]]:
        """Return (generation, bins) of the records of a set whose bin is above 0 and that pass a filter expression.

        The secondary index on the bin is created if it does not exist. Raises StoreUnavailable.
        """
        await self.call(partial(_create_index, self.namespace, set_name, bin_name))
        return await self.call(partial(_query, self.namespace, set_name, bin_name, filter_))

    def _check(self, answer: Any, count: int) -> None:
        """Raise StoreUnavailable if the whole call failed.

        While the client knows no node of the cluster (for example a server that has hung for some seconds), it sends
        nothing and raises nothing. It leaves records out or unchanged, which looks like OK (seen with 19.3).
        """
        records = answer.batch_records
        unchanged = answer.result != result_codes.OK and all(record.result == result_codes.OK for record in records)
        if len(records) != count or unchanged:
            raise self.unavailable(answer.result, "the cluster is unreachable")

    def unavailable(self, code: int | None, message: object) -> StoreUnavailable:
        """Return the error for a result code, with a hint for the operator."""
        hint = ""
        if code == result_codes.FORBIDDEN:
            hint = "; is nsup-period of the namespace above 0? Otherwise records with a time to live are refused"
        elif code == aerospike_errors.DeviceOverload.code:
            hint = "; its device cannot keep up with the writes"
        elif code == result_codes.NO_RESPONSE:
            hint = "; a node does not answer"
        return StoreUnavailable(f"{self._address!r}: {message} (code {code}){hint}")

    async def close(self) -> None:
        """Close the client after the calls in progress. A second call has no effect."""
        self._connected = True  # so that no call connects again
        await asyncio.to_thread(partial(self._threads.shutdown, cancel_futures=True))
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(aerospike_errors.AerospikeError):
                await asyncio.to_thread(client.close)


def _batch_write(records: list[Any], client: Any) -> Any:
    answer = batch.BatchRecords(records)
    client.batch_write(answer)
    return answer


def _batch_operate(
    ops: list[dict[str, Any]], policy: dict[str, Any], keys: list[tuple[str, str, str]], client: Any
) -> Any:
    return client.batch_operate(keys, ops, None, policy)


def _batch_read(bins: Sequence[str] | None, keys: list[tuple[str, str, str]], client: Any) -> Any:
    return client.batch_read(keys, bins)


def _create_index(namespace: str, set_name: str, bin_name: str, client: Any) -> None:
    with contextlib.suppress(aerospike_errors.IndexFoundError):
        client.index_single_value_create(
            namespace, set_name, bin_name, aerospike.INDEX_NUMERIC, f"{set_name}_{bin_name}"
        )


def _query(namespace: str, set_name: str, bin_name: str, filter_: Any, client: Any) -> list[tuple[int, dict[str, Any]]]:
    query = client.query(namespace, set_name)
    query.where(predicates.between(bin_name, 1, _MAX_INDEXED))
    return [(meta["gen"], bins) for _, meta, bins in query.results({"expressions": filter_})]


def _config(address: Address, timeout: float) -> dict[str, Any]:
    total = int(timeout * 1000)
    # The client must not retry writes: its own first try would look like another attempt's claim or change.
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
    if address.tls:
        files = {name: address.options[name] for name in _FILES if name in address.options}
        config["tls"] = {"enable": True, **files}
    return config
