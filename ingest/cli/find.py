"""`ingest find`: where a submission is."""

import asyncio
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
import typer

from ingest import settings
from ingest.backends import broker_backend, store_backend
from ingest.cli.dlq_session import ProgressBar
from ingest.cli.dlq_view import print_json
from ingest.cli.exits import UNAVAILABLE
from ingest.cli.options import Json
from ingest.domain.display import redacted, shown
from ingest.domain.errors import ConfigurationError
from ingest.domain.events import rfc3339
from ingest.operations.find import Findings, FoundDeadLetter, FoundEntry, search_queue
from ingest.operations.find import find as find_submission
from ingest.operations.find.facts import dead_letter_facts, entry_facts, reason_not_found
from ingest.telemetry import logs

_TIMES = ("created_at", "changed_at", "remembered_until", "died_at")


def find(
    sought: Annotated[
        str,
        typer.Argument(
            metavar="ID|KEY|MESSAGE_ID",
            help="The id of a task or batch, an idempotency key, the message_id of a direct submission without key, "
            "or the id or message_id of a dead letter.",
        ),
    ],
    customer: Annotated[
        str | None, typer.Option(metavar="CUST", help="Only submissions of this customer.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """Show where a task or batch is: how far it has come, whether its event is confirmed, and its dead letters.

    It looks in the ledger, which forgets a submission after its retention, and in ingest.dead. Without --customer, it
    looks for the key of every customer. If the ledger or the broker does not answer, the other one is shown, and
    standard error names what is missing.

    Exit code: 0, or 1 if nothing was found or something is missing.

    Example: ingest find order-10042-line-3 --customer acme
    """
    for name, value in (("what is sought", sought), ("--customer", customer)):
        if value is not None and (not value or not _is_unicode(value)):
            raise ConfigurationError(f"{name} must be text in UTF-8 and not empty")
    current = settings.load()
    logs.configure(current.log_level, current.log_format)
    search = search_queue(broker_backend(current).open_dead_letters, lambda total: ProgressBar().of(total))
    findings = asyncio.run(find_submission(sought, store_backend(current).open_to_read, search, customer))
    if json:
        print_json(findings_json(findings))
    else:
        typer.echo(findings_text(findings, sought))
    for part in findings.missing:
        typer.echo(f"missing: {shown(part)}", err=True)
    if findings.missing or not (findings.entries or findings.dead_letters):
        raise typer.Exit(UNAVAILABLE)


def findings_json(findings: Findings) -> dict[str, Any]:
    """Return the findings for programs, without secrets. Times are RFC 3339."""
    found: dict[str, Any] = redacted(msgspec.to_builtins(findings))
    for part in (*found["entries"], *found["dead_letters"]):
        for name in _TIMES:
            if part.get(name) is not None:
                part[name] = rfc3339(int(part[name] * 1000))
    return found


def findings_text(findings: Findings, sought: str) -> str:
    """Return the findings for people."""
    blocks = [*map(_entry_text, findings.entries), *map(_letter_text, findings.dead_letters)]
    if (hidden := findings.dead_letter_count - len(findings.dead_letters)) > 0:
        blocks.append(f"… and {hidden:,} older dead letters: `ingest dlq export` has them all")
    if not blocks:
        return f"{shown(sought)} was not found{reason_not_found(findings)}"
    return "\n\n".join(blocks)


def _entry_text(entry: FoundEntry) -> str:
    title = f"{entry.kind} {shown(entry.id)} of {shown(entry.cust_id)}"
    return "\n".join([title, *_lines(entry_facts(entry))])


def _letter_text(letter: FoundDeadLetter) -> str:
    return "\n".join([f"dead letter {shown(letter.id)}", *_lines(dead_letter_facts(letter))])


def _lines(facts: dict[str, str]) -> Iterator[str]:
    return (f"  {name:<11} {shown(value)}" for name, value in facts.items())


def _is_unicode(text: str) -> bool:
    """Return whether an argument was UTF-8. Python replaces other bytes by lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
