"""The checks of `ingest doctor`: can the service keep its guarantees with this set-up?"""

import os
from collections.abc import Collection
from collections.abc import Set as AbstractSet
from importlib import metadata
from typing import Final

from packaging.requirements import Requirement

from ingest import settings
from ingest.backends import broker_backend, store_backend
from ingest.domain.errors import ConfigurationError, IngestError
from ingest.domain.findings import Finding, error, not_checked, ok, warning
from ingest.domain.overview import counted
from ingest.domain.topology import FEEDBACK_PREFIX, feedback_queue, own_queues
from ingest.settings import Settings

_DISTRIBUTION: Final = "asg-ingest"
_LIBRARIES: Final = ("aerospike", "aio-pika", "aiormq")


async def all_findings(current: Settings) -> list[Finding]:
    """Check everything that these settings allow, and return the findings. Nothing that is stored changes."""
    findings = [*_settings(current), *_libraries(), *await _broker(current), *await _store(current)]
    return [*findings, *await _producers(current)]


def settings_error(problem: ConfigurationError) -> Finding:
    """Return the finding for settings that are invalid."""
    what = f"{problem}. {not_checked(('libraries', 'broker', 'store'))}"
    return error("settings", what, "correct the variable; `ingest settings` lists them all")


def _settings(current: Settings) -> list[Finding]:
    findings = [
        warning("settings", settings.misspelt(name, closest), "correct or unset it; `ingest settings` lists all")
        for name, closest in settings.unknown_variables(os.environ).items()
    ]
    return findings or [ok("settings", "all are known and valid")]


def _libraries() -> list[Finding]:
    requirements = [Requirement(text) for text in metadata.requires(_DISTRIBUTION) or []]
    findings = []
    for name in _LIBRARIES:
        version = metadata.version(name)
        ranges = [requirement.specifier for requirement in requirements if requirement.name == name]
        if all(version in specifier for specifier in ranges):
            findings.append(ok("libraries", f"{name} {version}"))
        else:
            do = f"pip install '{name}{','.join(map(str, ranges))}'"
            findings.append(error("libraries", f"{name} {version} was not tested with this version of the service", do))
    return findings


async def _broker(current: Settings) -> list[Finding]:
    try:
        return await broker_backend(current).findings(current.outage_hold)
    except ConfigurationError as problem:
        return [error("broker", str(problem), "correct the setting")]


async def _store(current: Settings) -> list[Finding]:
    try:
        return await store_backend(current).findings()
    except ConfigurationError as problem:
        return [error("store", str(problem), "correct INGEST_STORE_URL")]


async def _producers(current: Settings) -> list[Finding]:
    """Compare the producers in the store with their queues.

    Return no finding if the management API, the broker or the store is unavailable: `_broker` and `_store` report that.
    """
    try:
        queues = await broker_backend(current).producer_queues()
        if queues is None:
            return []
        store = await store_backend(current).open()
        try:
            producers = await store.producers()
        finally:
            await store.close()
    except IngestError:
        return []
    return producer_findings(producers.keys(), queues)


def producer_findings(producers: AbstractSet[str], queues: Collection[str]) -> list[Finding]:
    """Return the findings about producers in the store and the names of queues of single producers on the broker."""
    existing = set(queues)
    expected = {cust_id: {queue.name for queue in own_queues(cust_id)} for cust_id in producers}
    feedback = {cust_id: feedback_queue(cust_id).name for cust_id in producers}
    findings = [
        error(
            "producers",
            f"the queues of {cust_id} are missing: what it submits goes to the shared queues; messages in a deleted "
            "queue are lost",
            f"run `ingest producer add {cust_id}`",
        )
        for cust_id, names in sorted(expected.items())
        if not names <= existing
    ]
    findings += [
        warning(
            "producers",
            f"queue {name} is missing: {cust_id} gets no reports about rejected and duplicate submissions",
            f"run `ingest producer add {cust_id}`",
        )
        for cust_id, name in sorted(feedback.items())
        if name not in existing
    ]
    known = {*feedback.values(), *[name for names in expected.values() for name in names]}
    if unknown := sorted(name for name in existing - known if not name.startswith(FEEDBACK_PREFIX)):
        findings.append(
            error(
                "producers",
                f"no worker consumes {', '.join(unknown)}: the store does not have the producer",
                "run `ingest producer add CUST`, and then, if it should not have them, `ingest producer remove CUST`",
            )
        )
    if producers and not findings:
        findings.append(ok("producers", f"{counted(len(producers), 'producer')} with queues of their own"))
    return findings
