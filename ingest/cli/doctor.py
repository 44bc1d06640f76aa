"""`ingest doctor`: is everything set up so that what is promised can be kept?"""

import asyncio
import os
from importlib import metadata
from typing import Annotated, Final
from urllib.parse import urlsplit

import msgspec
import typer
from packaging.requirements import Requirement
from rich.console import Console
from rich.text import Text

from ingest import backends, settings
from ingest.backends import management, sqlite_path
from ingest.broker.rabbitmq import checks as rabbitmq_checks
from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.cli.options import Json
from ingest.domain.errors import ConfigurationError, StoreUnavailable
from ingest.domain.findings import Finding, Severity, error, ok, warning
from ingest.settings import Settings
from ingest.sqlite.checks import check_file
from ingest.store.aerospike import checks as aerospike_checks
from ingest.store.aerospike.info import AerospikeView
from ingest.telemetry import logs
from ingest.telemetry.logs import redact

_LIBRARIES: Final = ("aerospike", "aio-pika", "aiormq")
_STYLES: Final = {Severity.OK: "green", Severity.WARNING: "yellow", Severity.ERROR: "red"}
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")


def doctor(
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count as errors for the exit code.")] = False,
    json: Json = False,
) -> None:
    """Check settings, broker and store, and say what to do about what is wrong. Changes nothing that is stored.

    Settings and client libraries; RabbitMQ: version, topology, policies, permissions, alarms, queue members;
    Aerospike: expiry, eviction, copies, clocks, room; or the embedded files. What needs INGEST_MANAGEMENT_URL, or a
    tag that its user lacks, is left out, and that is said.

    Exit code: 0 without errors (with --strict: without warnings), 1 otherwise. Secrets are never shown.
    """
    found = asyncio.run(findings())
    if json:
        typer.echo(msgspec.json.encode([_clean(each) for each in found]).decode())
    else:
        _print(found)
    bad = {Severity.ERROR, Severity.WARNING} if strict else {Severity.ERROR}
    if any(each.severity in bad for each in found):
        raise typer.Exit(1)


async def findings() -> list[Finding]:
    """Everything that can be checked with the settings as they are."""
    try:
        loaded = settings.load()
    except ConfigurationError as why:
        return [error("settings", str(why), "correct the variable; `ingest --help` lists them all")]
    logs.configure("error", loaded.log_format)
    return [*_settings(loaded), *_libraries(), *await _broker(loaded), *await _store(loaded)]


def _settings(loaded: Settings) -> list[Finding]:
    known = {name for name, _, _ in settings.described()}
    found = [
        warning("settings", f"{name} is no setting", "a typing error? `ingest --help` lists them all")
        for name in sorted(os.environ)
        if name.startswith("INGEST_") and name not in known and not name.startswith("INGEST_TEST_")
    ]
    for name, url in (
        ("INGEST_BROKER_URL", loaded.broker),
        ("INGEST_MANAGEMENT_URL", loaded.management_url.get_secret_value()),
    ):
        parts = urlsplit(url)
        if parts.scheme in ("amqp", "http") and not all(_is_local(host) for host in _hosts(parts.netloc)):
            secure = parts.scheme + "s"
            found.append(
                warning(
                    "settings",
                    f"{name} goes over the network without TLS",
                    f"use {secure}:// unless the network is private",
                )
            )
    return found or [ok("settings", "all known and valid")]


def _hosts(netloc: str) -> list[str]:
    hosts = netloc.rpartition("@")[2].split(",")
    return [host if host.endswith("]") else host.rpartition(":")[0] or host for host in hosts]


def _is_local(host: str) -> bool:
    return host.strip("[]") in _LOOPBACK


def _libraries() -> list[Finding]:
    wanted = [Requirement(text) for text in metadata.requires("asg-ingest") or []]
    found = []
    for name in _LIBRARIES:
        have = metadata.version(name)
        ranges = [each.specifier for each in wanted if each.name == name]
        if all(have in each for each in ranges):
            found.append(ok("libraries", f"{name} {have}"))
        else:
            do = f"pip install '{name}{','.join(map(str, ranges))}'"
            found.append(error("libraries", f"{name} {have} was not tested with this version", do))
    return found


async def _broker(loaded: Settings) -> list[Finding]:
    try:
        path = sqlite_path(loaded.broker)
        if path is not None:
            return [
                ok("broker", "embedded: for one process (`ingest dev`); RabbitMQ for more"),
                *check_file("broker", path),
            ]
        broker = await backends.open_broker(loaded, "ingest doctor")
        if not isinstance(broker, RabbitBroker):
            raise ConfigurationError("INGEST_BROKER_URL must begin with amqp://, amqps:// or sqlite:///")
        trusted = loaded.trusted_users or frozenset({broker.user} if broker.user else ())
        return await rabbitmq_checks.findings(broker, management(loaded), trusted, loaded.outage_hold)
    except ConfigurationError as why:
        return [error("broker", str(why), "correct the setting")]


async def _store(loaded: Settings) -> list[Finding]:
    try:
        path = sqlite_path(loaded.store)
        if path is not None:
            return check_file("store", path)
        view = AerospikeView.open(loaded.store, loaded.store_timeout)
    except ConfigurationError as why:
        return [error("store", str(why), "correct INGEST_STORE_URL")]
    try:
        found = aerospike_checks.findings(await view.look(), view.namespace)
    except StoreUnavailable as why:
        return [error("store", str(why), "start Aerospike, or correct hosts, user or password in INGEST_STORE_URL")]
    finally:
        await view.close()
    return [*found, *await _writes(loaded)]


async def _writes(loaded: Settings) -> list[Finding]:
    store = await backends.open_store(loaded)
    try:
        await store.ready()
    except StoreUnavailable as why:
        return [error("store", f"a write with a time to live is refused: {why}", "see the findings above")]
    finally:
        await store.close()
    return [ok("store", "takes a write with a time to live")]


def _clean(found: Finding) -> Finding:
    return msgspec.structs.replace(found, what=redact(found.what), do=redact(found.do))


def _print(found: list[Finding]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    area = ""
    for each in map(_clean, found):
        if each.area != area:
            area = each.area
            console.print(Text(area, style="bold"))
        console.print(Text.assemble("  ", (f"{each.severity.value:8}", _STYLES[each.severity]), each.what))
        if each.do:
            console.print(Text(f"{'':10}→ {each.do}"))
    counts = {severity: sum(each.severity is severity for each in found) for severity in Severity}
    console.print(f"\n{counts[Severity.ERROR]} errors, {counts[Severity.WARNING]} warnings, {counts[Severity.OK]} fine")
