"""Options of `ingest dlq`: which dead letters, and how fast."""

from typing import Annotated

import typer

from ingest.domain.errors import ConfigurationError
from ingest.operations.dead_letters import Selection
from ingest.operations.parameters import seconds
from ingest.operations.remedies import REMEDIES

Ids = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Only these; copies share an id.")]
Reasons = Annotated[
    list[str] | None, typer.Option("--reason", metavar="R", help="Only of this reason; repeatable.", show_default=False)
]
Customer = Annotated[str | None, typer.Option(metavar="CUST", help="Only of this customer.", show_default=False)]
Older = Annotated[
    str | None, typer.Option("--older-than", metavar="TIME", help="Only if older: 90s, 12h, 7d.", show_default=False)
]
Newer = Annotated[str | None, typer.Option("--newer-than", metavar="TIME", help="Only if newer.", show_default=False)]
All = Annotated[bool, typer.Option("--all", help="All of them; required if nothing else selects.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do nothing.")]


def selection_of(
    ids: list[str] | None,
    reason: list[str] | None,
    customer: str | None,
    older: str | None,
    newer: str | None,
    *,
    all_: bool | None = None,
) -> Selection:
    """Return the selection. Raises ConfigurationError, also if nothing selects and `all_` is False."""
    for name in reason or ():
        if name not in REMEDIES:
            raise ConfigurationError(f"--reason: unknown reason {name!r}; known are {', '.join(REMEDIES)}")
    selection = Selection(
        ids=frozenset(ids or ()),
        reasons=frozenset(reason or ()),
        customer=customer,
        older_than=seconds(older, "--older-than") if older is not None else None,
        newer_than=seconds(newer, "--newer-than") if newer is not None else None,
    )
    if all_ is False and selection == Selection():
        raise ConfigurationError(
            "select dead letters with an ID, --reason, --customer, --older-than, --newer-than, or --all"
        )
    if all_ and selection != Selection():
        raise ConfigurationError("--all cannot be combined with other selections")
    return selection
