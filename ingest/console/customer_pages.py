"""The pages of customers: all of them, and one with its API keys, webhooks and dead letters."""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ingest.console.customers import Customers
from ingest.console.dead_letters import DeadLetters
from ingest.console.failures import noted
from ingest.console.paging import page_of
from ingest.console.recent_letters import groups_of, is_complete, recent_counts
from ingest.console.snapshot import Snapshot
from ingest.domain.display import age
from ingest.domain.errors import IngestError
from ingest.domain.events import rfc3339
from ingest.operations.customers import CustomerDetails, CustomerList

Render = Callable[..., Response]
"""Renders a template: its name, the HTTP status, and its fields."""

_PAGE: Final = 50
"""Customers of a page."""
_LONGEST_ID: Final = 300
"""Characters of the longest customer id that is looked for. One that a command has added has at most 64."""
_MOST: Final = 200
"""API keys, webhooks or reasons that are shown of a customer."""
_TIMEOUT: Final = 10.0
"""Seconds for reading one customer."""
_NEARLY: Final = 0.9
"""Share at which a quota counts as nearly used up."""


class QuotaUse(msgspec.Struct, frozen=True):
    """What is shown of a quota: `limit` is None if it is unlimited; `level` names the style of its bar."""

    used: int
    limit: int | None

    @property
    def is_exhausted(self) -> bool:
        """Whether the quota accepts no more tasks."""
        return self.limit is not None and self.used >= self.limit

    @property
    def percent(self) -> int | None:
        """The share that is used, rounded down, so 100 means used up; None if there is none."""
        return 100 * self.used // self.limit if self.limit else None

    @property
    def level(self) -> str:
        """`exhausted`, `nearly` or `normal`."""
        if self.is_exhausted:
            return "exhausted"
        return "nearly" if self.limit and self.used >= _NEARLY * self.limit else "normal"


class CustomerPages:
    """Answers `/customers` and `/customers/one`.

    Args:
        customers: reads them.
        dead_letters: what is in ingest.dead.
        render: renders a page.
        timeout: seconds for reading one customer.
    """

    def __init__(
        self, customers: Customers, dead_letters: DeadLetters, render: Render, timeout: float = _TIMEOUT
    ) -> None:
        self._customers = customers
        self._dead_letters = dead_letters
        self._render = render
        self._timeout = timeout

    async def all(self, request: Request) -> Response:
        """Return the customers whose id begins with `prefix`, 50 a page."""
        prefix = request.query_params.get("prefix", "").strip()
        fields: dict[str, Any] = {"prefix": prefix, "error": "", "listing": None}
        if len(prefix) > _LONGEST_ID:
            fields["error"] = f"A customer id has at most {_LONGEST_ID} characters."
            return self._page("customers.html", None, 400, **fields)
        listing, snapshot = await asyncio.gather(self._customers.look(prefix), self._dead_letters.look())
        if failure := self._customers.failure:
            fields["error"] = f"The customers could not be read: {failure}"
        if listing is None:
            return self._page("customers.html", snapshot, 503 if fields["error"] else 200, **fields)
        fields |= self._rows(listing, prefix, page_of(request))
        counts = None if snapshot is None else recent_counts(snapshot)
        return self._page("customers.html", snapshot, counts=counts, **fields)

    def _rows(self, listing: CustomerList, prefix: str, page: int) -> dict[str, Any]:
        found = [customer for customer in listing.customers if customer.cust_id.startswith(prefix)]
        shown = found[(page - 1) * _PAGE : page * _PAGE]
        return {
            "listing": listing,
            "at": rfc3339(int(listing.at * 1000)),
            "rows": [(customer, QuotaUse(customer.used, customer.monthly_quota)) for customer in shown],
            "count": len(found),
            "page": page,
            "last": max(1, -(-len(found) // _PAGE)),
        }

    async def one(self, request: Request) -> Response:
        """Return the customer `id`."""
        cust_id = request.query_params.get("id", "")
        snapshot = await self._dead_letters.look()
        details, failure = None, ""
        try:
            if 0 < len(cust_id) <= _LONGEST_ID:
                async with asyncio.timeout(self._timeout):
                    details = await self._customers.one(cust_id)
        except TimeoutError:
            failure = f"the store did not answer within {self._timeout:g} s"
        except IngestError as error:
            failure = noted("customer_not_read", error)
        status = 503 if failure else 404 if details is None else 200
        groups = [] if snapshot is None else groups_of(snapshot, cust_id)
        return self._page(
            "customer.html",
            snapshot,
            status,
            cust_id=cust_id[:_LONGEST_ID],
            failure=failure,
            details=details,
            quota=None if details is None else QuotaUse(details.used, details.customer.monthly_quota),
            facts={} if details is None else customer_facts(details),
            at=rfc3339(int(time.time() * 1000)),
            rfc3339=rfc3339,
            groups=groups[:_MOST],
            most=_MOST,
        )

    def _page(self, template: str, snapshot: Snapshot | None, status: int = 200, **fields: Any) -> Response:
        letters = self._dead_letters
        dead = {
            "at": None if snapshot is None else rfc3339(int(snapshot.at * 1000)),
            "is_complete": snapshot is None or is_complete(snapshot),
            "failure": letters.failure,
        }
        return self._render(template, status, section="Customers", dead=dead, **{"title": "Customers"} | fields)


def customer_facts(details: CustomerDetails) -> dict[str, str]:
    """Return what is shown of a customer besides its quota, by name."""
    customer = details.customer
    own_queues = f"with queues of its own, ingest.direct.{customer.cust_id}.tasks and .batches"
    return {
        "state": "disabled: what it submits is refused" if customer.disabled else "enabled",
        "rate limit": "none" if customer.rate is None else f"{customer.rate.words}, over HTTP",
        "weight": f"{customer.weight:g}",
        "retention": f"{age(customer.retention)}: idempotency keys are remembered for this time",
        "strict": f"{'yes' if customer.strict else 'no'}: another body under a used key is "
        + ("refused" if customer.strict else "answered as a replay"),
        "direct producer": own_queues
        if details.has_own_queues
        else "no queues of its own; a direct producer uses the shared ones",
    }
