"""`ingest doctor`: checks whether the service can keep its guarantees with this set-up."""

import asyncio
import textwrap
from typing import Annotated, Final

import msgspec
import typer
from rich.console import Console
from rich.text import Text

from ingest import settings
from ingest.cli.options import Json
from ingest.domain.display import json_text, redacted, shown
from ingest.domain.errors import ConfigurationError
from ingest.domain.findings import Finding, Severity
from ingest.domain.overview import counted
from ingest.operations.checks import all_findings, settings_error
from ingest.telemetry import logs

_STYLES: Final = {Severity.OK: "green", Severity.WARNING: "yellow", Severity.ERROR: "red"}


def doctor(
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count as errors for the exit code.")] = False,
    json: Json = False,
) -> None:
    """Check settings, broker and store. It says what to do about each problem, and changes nothing that is stored.

    It checks settings and client libraries. RabbitMQ: version, topology, policies, permissions, alarms, queue members,
    whether workers trust the users of all connected shims and workers, and whether the connections are encrypted.
    Aerospike: expiry, eviction, storage, copies, clocks, free space, encryption, and whether there is a customer.
    Embedded: the files. Producers: whether those in the store, and no others, have queues of their own. Checks that
    could not be made are listed: those of a server that does not answer, those that need INGEST_MANAGEMENT_URL or the
    tag `monitoring` of its user, and that of permissions, which needs the tag `administrator`.

    Exit code: 0 without errors (with --strict: without warnings), otherwise 1. Secrets are never shown.
    """
    findings = asyncio.run(_findings())
    if json:
        typer.echo(json_text(redacted(msgspec.to_builtins(findings))))
    else:
        print_findings(Console(highlight=False), findings)
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


def print_findings(console: Console, findings: list[Finding]) -> None:
    """Print findings by area, and how many there are of each severity."""
    for area in dict.fromkeys(finding.area for finding in findings):
        console.print(Text(area, style="bold"))
        for finding in findings:
            if finding.area == area:
                _print_finding(console, finding)
    counts = {severity: sum(finding.severity is severity for finding in findings) for severity in Severity}
    errors, warnings = counted(counts[Severity.ERROR], "error"), counted(counts[Severity.WARNING], "warning")
    console.print(f"\n{errors}, {warnings}, {counts[Severity.OK]} fine")


def _print_finding(console: Console, finding: Finding) -> None:
    severity = (f"{finding.severity.value:8}", _STYLES[finding.severity])
    _print_indented(console, Text.assemble("  ", severity), shown(finding.what))
    if finding.do:
        _print_indented(console, Text(f"{'':10}→ "), shown(finding.do))


def _print_indented(console: Console, start: Text, text: str) -> None:
    """Print a text whose lines begin below the end of `start`.

    Programs get one line, and so does a terminal if there is a command to copy, which a line break would cut.
    """
    if not console.is_terminal or "rabbitmqctl" in text:
        console.print(start + Text(text), soft_wrap=True)
        return
    width = max(console.width - start.cell_len, 20)
    lines = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
    console.print(start + Text(f"\n{'':{start.cell_len}}".join(lines)), soft_wrap=True)
