"""`ingest doctor`: checks whether the service can keep its guarantees with this set-up."""

import asyncio
from typing import Annotated, Final

import msgspec
import typer
from rich.console import Console
from rich.text import Text

from ingest import settings
from ingest.cli.options import Json
from ingest.domain.errors import ConfigurationError
from ingest.domain.findings import Finding, Severity
from ingest.operations.checks import all_findings, settings_error
from ingest.telemetry import logs
from ingest.telemetry.logs import redact

_STYLES: Final = {Severity.OK: "green", Severity.WARNING: "yellow", Severity.ERROR: "red"}


def doctor(
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count as errors for the exit code.")] = False,
    json: Json = False,
) -> None:
    """Check settings, broker and store, and say what to do about each problem. Nothing that is stored changes.

    It checks settings and client libraries. RabbitMQ: version, topology, policies, permissions, alarms, queue members,
    and whether workers trust the users of all connected shims and workers.
    Aerospike: expiry, eviction, storage, copies, clocks, free space, and whether there is a customer. Embedded: the
    files. Checks that could not be made are listed: those of a server that does not answer, those that need
    INGEST_MANAGEMENT_URL or the tag `monitoring` of its user, and that of permissions, which needs the tag
    `administrator`.

    Exit code: 0 without errors (with --strict: without warnings), otherwise 1. Secrets are never shown.
    """
    findings = [_redacted(finding) for finding in asyncio.run(_findings())]
    if json:
        typer.echo(msgspec.json.encode(findings).decode())
    else:
        _print(findings)
    failing = {Severity.ERROR, Severity.WARNING} if strict else {Severity.ERROR}
    if any(finding.severity in failing for finding in findings):
        raise typer.Exit(1)


async def _findings() -> list[Finding]:
    try:
        current = settings.load()
    except ConfigurationError as error:
        return [settings_error(error)]
    logs.configure("error", current.log_format)
    return await all_findings(current)


def _redacted(finding: Finding) -> Finding:
    return msgspec.structs.replace(finding, what=redact(finding.what), do=redact(finding.do))


def _print(findings: list[Finding]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for area in dict.fromkeys(finding.area for finding in findings):
        console.print(Text(area, style="bold"))
        for finding in findings:
            if finding.area == area:
                _print_finding(console, finding)
    counts = {severity: sum(finding.severity is severity for finding in findings) for severity in Severity}
    console.print(f"\n{counts[Severity.ERROR]} errors, {counts[Severity.WARNING]} warnings, {counts[Severity.OK]} fine")


def _print_finding(console: Console, finding: Finding) -> None:
    severity = (f"{finding.severity.value:8}", _STYLES[finding.severity])
    console.print(Text.assemble("  ", severity, finding.what))
    if finding.do:
        console.print(Text(f"{'':10}→ {finding.do}"))
