"""The state of processes, from their own ports for metrics and health."""

import asyncio
import ipaddress
import socket
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import httpx
from prometheus_client.parser import text_string_to_metric_families

from ingest.domain import metrics
from ingest.domain.errors import ConfigurationError
from ingest.domain.overview import ProcessState
from ingest.proxies import client_options

_TIMEOUT: Final = 3.0

_Answer = tuple[list[ProcessState], list[str]]
"""The processes at one address, and their problems."""
Resolve = Callable[[str], Awaitable[list[str]]]
"""Returns the addresses of a host. Raises OSError or UnicodeError if there are none."""


async def resolve(host: str) -> list[str]:
    """Return the addresses of a host, as `Resolve`."""
    found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


class Scraper:
    """Reads `/metrics` and `/readyz` of each URL. Rates are computed between two calls.

    A name with several addresses, such as that of a headless Service of Kubernetes, is read at each of them. With
    https, which needs the name for the certificate, or through a proxy, it is read once.

    Args:
        urls: `http://host:port`, with INGEST_METRICS_PORT.
        resolve: finds the addresses of a name.
    """

    def __init__(self, urls: Iterable[str], resolve: Resolve = resolve) -> None:
        self._urls = [url.rstrip("/").removesuffix("/metrics") for url in urls]
        self._resolve = resolve
        self._before: dict[tuple[str, str], tuple[float, float]] = {}

    async def scrape(self) -> tuple[list[ProcessState], list[str]]:
        """Return the processes, and their problems as sentences. Raises nothing."""
        of_urls = await asyncio.gather(*[self._ask(url) for url in self._urls])
        answers = [answer for of_url in of_urls for answer in of_url]
        present = {(state.url, state.address) for process_states, _ in answers for state in process_states}
        self._before = {key: value for key, value in self._before.items() if key in present}
        states = [state for process_states, _ in answers for state in process_states]
        return states, [problem for _, problems in answers for problem in problems]

    async def _ask(self, url: str) -> list[_Answer]:
        """Return what is at each address of a URL."""
        try:
            options = client_options(url)
            async with httpx.AsyncClient(**options, timeout=_TIMEOUT) as client:
                is_direct = options["proxy"] is None and httpx.URL(url).scheme == "http"
                addresses = await self._addresses(url) if is_direct else [""]
                return await asyncio.gather(*[self._ask_at(client, url, address) for address in addresses])
        except (httpx.InvalidURL, ConfigurationError) as error:
            return [([], [f"{url} serves no metrics: {error}"])]

    async def _addresses(self, url: str) -> list[str]:
        """Return the addresses of a URL's host; an empty one if it has not several, or they are unknown."""
        try:
            async with asyncio.timeout(_TIMEOUT):
                found = await self._resolve(httpx.URL(url).host)
        except (OSError, UnicodeError):  # the request says what is wrong
            return [""]
        return several(found) or [""]

    async def _ask_at(self, client: httpx.AsyncClient, url: str, address: str) -> _Answer:
        where = f"{url} at {address}" if address else url
        try:
            target = httpx.URL(url)
            headers = {"host": target.netloc.decode()}
            target = target.copy_with(host=address) if address else target
            answer = await client.get(f"{target}/metrics", headers=headers)
            answer.raise_for_status()
            ready = await client.get(f"{target}/readyz", headers=headers)
            samples = _samples(answer.text)
        except (httpx.HTTPError, ValueError) as error:
            return [], [f"{where} serves no metrics: {str(error) or type(error).__name__}"]
        problems = [] if ready.status_code == 200 else [f"{where}: {_error(ready)}"]
        return self._states(url, address, samples), problems

    def _states(self, url: str, address: str, samples: list[tuple[str, dict[str, str], float]]) -> list[ProcessState]:
        accepted = sum(value for name, _, value in samples if name == metrics.ACCEPTED_TASKS.name)
        rate = self._rate((url, address), accepted)
        # The processes of one port are forked from one, so they have one version.
        builds = [labels for name, labels, _ in samples if name == metrics.BUILD_INFO.name]
        version = builds[0].get("version", "") if builds else ""
        names = sorted({labels["process"] for _, labels, _ in samples if "process" in labels})
        states = []
        for process in names:
            own = [(name, value) for name, labels, value in samples if labels.get("process") == process]
            last = _gauge(own, metrics.LAST_PROGRESS)
            states.append(
                ProcessState(
                    url=url,
                    address=address,
                    process=process,
                    version=version,
                    ready=_flag(own, metrics.READY),
                    breaker_open=_flag(own, metrics.BREAKER_OPEN),
                    stalled=_flag(own, metrics.STALLED),
                    in_flight=_count(own, metrics.DELIVERIES_IN_FLIGHT),
                    idle=None if last is None else max(0.0, time.time() - last),
                    # Counters are sums over all processes of one port, so they are shown with the first process.
                    accepted=rate if process == names[0] else None,
                    heavy=_count(own, metrics.HEAVY_CUSTOMERS),
                )
            )
        return states

    def _rate(self, key: tuple[str, str], total: float) -> float | None:
        now = time.monotonic()
        then, before = self._before.get(key, (0.0, 0.0))
        self._before[key] = (now, total)
        return (total - before) / (now - then) if then and total >= before else None


def several(addresses: Iterable[str]) -> list[str]:
    """Return the addresses of one family, IPv4 if possible, of which there are several; otherwise an empty list.

    A host with one address of each family is one host, such as `localhost`.
    """
    found = {ipaddress.ip_address(address) for address in addresses}
    for version in (4, 6):
        of_family = [address for address in found if address.version == version]
        if len(of_family) > 1:
            return [str(address) for address in sorted(of_family, key=int)]
    return []


def _samples(text: str) -> list[tuple[str, dict[str, str], float]]:
    return [
        (sample.name, sample.labels, sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    ]


def _gauge(samples: list[tuple[str, float]], metric: metrics.Metric) -> float | None:
    values = [value for name, value in samples if name == metric.name]
    return sum(values) if values else None


def _flag(samples: list[tuple[str, float]], metric: metrics.Metric) -> bool | None:
    value = _gauge(samples, metric)
    return None if value is None else value > 0


def _count(samples: list[tuple[str, float]], metric: metrics.Metric) -> int | None:
    value = _gauge(samples, metric)
    return None if value is None else int(value)


def _error(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        return f"answers {response.status_code}"
