"""Chooses the traffic class and the queue of what the shim has admitted."""

import zlib
from collections.abc import Sequence
from itertools import cycle
from typing import Final

from ingest.admission import Decision
from ingest.domain.submissions import BYTES_PER_TASK
from ingest.domain.topology import HEAVY_BULK, HTTP_BULK, INGEST_HEAVY, INGEST_HTTP, route_to
from ingest.shim.heavy import HeavyCustomers

BULK: Final = 16 * 1024
"""Bytes of tasks above which a submission goes to a bulk queue: about 50 usual tasks."""
_ORDINARY: Final = tuple(map(route_to, INGEST_HTTP))
_ORDINARY_BULK: Final = route_to(HTTP_BULK)
_HEAVY: Final = tuple(map(route_to, INGEST_HEAVY))
_HEAVY_BULK: Final = route_to(HEAVY_BULK)


class TrafficRouter:
    """Chooses routes (`domain.addresses`). A heavy customer's submissions wait in queues of their own.

    Args:
        heavy_customers: counts tasks.
    """

    def __init__(self, heavy_customers: HeavyCustomers) -> None:
        self._heavy_customers = heavy_customers
        self._ordinary = cycle(_ORDINARY)

    def routes(self, decisions: Sequence[Decision]) -> list[str]:
        """Return the route of each submission of a micro-batch. The ordinary ones without many bytes have the same."""
        ordinary = ""
        routes = []
        for decision in decisions:
            cust_id, tasks = decision.entry.cust_id, decision.request.submission.tasks
            size = sum([memoryview(task.body).nbytes for task in tasks])
            weight = decision.request.customer.weight
            is_heavy = self._heavy_customers.add(cust_id, (len(tasks) + size // BYTES_PER_TASK) / weight)
            if size > BULK:
                routes.append(_HEAVY_BULK if is_heavy else _ORDINARY_BULK)
            elif is_heavy:
                routes.append(_HEAVY[zlib.crc32(cust_id.encode()) % len(_HEAVY)])
            else:
                ordinary = ordinary or next(self._ordinary)
                routes.append(ordinary)
        return routes
