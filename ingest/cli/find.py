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
from ingest.operations.find import Findings, FoundEntry, FoundLetter
from ingest.operations.find import find as search
from ingest.operations.find_facts import entry_facts, letter_facts
from ingest.telemetry import logs

_TIMES = ("created_at", "changed_at", "remembered_until", "died_at")


def find(
    sought: Annotated[
        str,
        typer.Argument(
            metavar="ID|KEY|MESSAGE_ID",
            help="The id of a task or batch, an idempotency key, the message_id of a direct producer, or the id of a "
            "dead letter.",
        ),
    ],
    customer: Annotated[
        str | None, typer.Option(metavar="CUST", help="Only submissions of this customer.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """Show where a task or batch is: how far it has come, whether its event is out, and its dead letters.

    It looks in the ledger, which forgets a submission after its retention, and in ingest.dead. Ids are computed from
    keys, so a key is found without a search; without --customer, that of every customer. If a part of the service does
    not answer, the others are still asked, and what could not be asked is said.

    Exit code: 0, or 1 if nothing was found or something could not be asked.

    Example: ingest find order-10042-line-3 --customer acme
    """
    if not sought:
        raise ConfigurationError("what is sought must be an id, a key or a message_id; it is empty")
    current = settings.load()
    logs.configure(current.log_level, current.log_format)
    open_store, open_dead_letters = store_backend(current).open, broker_backend(current).open_dead_letters
    findings = asyncio.run(
        search(sought, open_store, open_dead_letters, customer, lambda total: ProgressBar().of(total))
    )
    if json:
        print_json(findings_json(findings))
    else:
        typer.echo(findings_text(findings, sought))
    for part in findings.not_asked:
        typer.echo(f"not asked: {shown(part)}", err=True)
    if findings.not_asked or not (findings.entries or findings.letters):
        raise typer.Exit(UNAVAILABLE)


def findings_json(findings: Findings) -> dict[str, Any]:
    """Return the findings for programs, without secrets. Times are RFC 3339."""
    found: dict[str, Any] = redacted(msgspec.to_builtins(findings))
    for part in (*found["entries"], *found["letters"]):
        for name in _TIMES:
            if part.get(name) is not None:
                part[name] = rfc3339(int(part[name] * 1000))
    return found


def findings_text(findings: Findings, sought: str) -> str:
    """Return the findings for people."""
    blocks = [*map(_entry_text, findings.entries), *map(_letter_text, findings.letters)]
    if (hidden := findings.letter_count - len(findings.letters)) > 0:
        blocks.append(f"… and {hidden:,} older dead letters: `ingest dlq export` has them all")
    if not blocks:
        where = "" if findings.not_asked else ": it was never submitted or was refused, or its retention has ended"
        return f"{shown(sought)} was not found{where}"
    return "\n\n".join(blocks)


def _entry_text(entry: FoundEntry) -> str:
    title = f"{entry.kind} {shown(entry.id)} of {shown(entry.cust_id)}"
    return "\n".join([title, *_lines(entry_facts(entry))])


def _letter_text(letter: FoundLetter) -> str:
    return "\n".join([f"dead letter {shown(letter.id)}", *_lines(letter_facts(letter))])


def _lines(facts: dict[str, str]) -> Iterator[str]:
    return (f"  {name:<11} {shown(value)}" for name, value in facts.items())
