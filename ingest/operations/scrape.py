"""The state of processes, from their own ports for metrics and health."""

import asyncio
import time
from collections.abc import Iterable
from typing import Final

import httpx
from prometheus_client.parser import text_string_to_metric_families

from ingest.domain import metrics
from ingest.domain.errors import ConfigurationError
from ingest.domain.overview import ProcessState
from ingest.proxies import client_options

_TIMEOUT: Final = 3.0


class Scraper:
    """Reads `/metrics` and `/readyz` of each URL. Rates are computed between two calls.

    Args:
        urls: `http://host:port`, with INGEST_METRICS_PORT.
    """

    def __init__(self, urls: Iterable[str]) -> None:
        self._urls = [url.rstrip("/").removesuffix("/metrics") for url in urls]
        self._before: dict[str, tuple[float, float]] = {}

    async def scrape(self) -> tuple[list[ProcessState], list[str]]:
        """Return the processes, and their problems as sentences. Raises nothing."""
        answers = await asyncio.gather(*[self._ask(url) for url in self._urls])
        states = [state for process_states, _ in answers for state in process_states]
        return states, [problem for _, problems in answers for problem in problems]

    async def _ask(self, url: str) -> tuple[list[ProcessState], list[str]]:
        try:
            async with httpx.AsyncClient(**client_options(url), timeout=_TIMEOUT) as client:
                answer = await client.get(f"{url}/metrics")
                answer.raise_for_status()
                ready = await client.get(f"{url}/readyz")
            samples = _samples(answer.text)
        except (httpx.HTTPError, httpx.InvalidURL, ConfigurationError, ValueError) as error:
            return [], [f"{url} serves no metrics: {str(error) or type(error).__name__}"]
        problems = [] if ready.status_code == 200 else [f"{url}: {_error(ready)}"]
        return self._states(url, samples), problems

    def _states(self, url: str, samples: list[tuple[str, dict[str, str], float]]) -> list[ProcessState]:
        accepted = sum(value for name, _, value in samples if name == metrics.ACCEPTED_TASKS.name)
        rate = self._rate(url, accepted)
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

    def _rate(self, url: str, total: float) -> float | None:
        now = time.monotonic()
        then, before = self._before.get(url, (0.0, 0.0))
        self._before[url] = (now, total)
        return (total - before) / (now - then) if then and total >= before else None


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
