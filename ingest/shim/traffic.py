"""Chooses the traffic class and the queue of what the shim has admitted."""

import zlib
from collections.abc import Sequence
from itertools import cycle
from typing import Final

from ingest.admission import Decision
from ingest.domain.submissions import BYTES_PER_TASK
from ingest.domain.topology import DEFAULT, HEAVY_BULK, HTTP_BULK, Layout, route_to
from ingest.shim.heavy import HeavyCustomers

BULK: Final = 16 * 1024
"""Bytes of tasks above which a submission goes to a bulk queue: about 50 usual tasks."""
_ORDINARY_BULK: Final = route_to(HTTP_BULK)
_HEAVY_BULK: Final = route_to(HEAVY_BULK)


class TrafficRouter:
    """Chooses routes (`domain.addresses`). A heavy customer's submissions wait in queues of their own.

    Args:
        heavy_customers: counts tasks.
        layout: how many queues there are.
    """

    def __init__(self, heavy_customers: HeavyCustomers, layout: Layout = DEFAULT) -> None:
        self._heavy_customers = heavy_customers
        self._ordinary = cycle(map(route_to, layout.http_queues))
        self._heavy = tuple(map(route_to, layout.heavy_queues))

    def routes(self, decisions: Sequence[Decision]) -> list[str]:
        """Return the route of each submission of a micro-batch. The ordinary ones without many bytes have the same."""
        ordinary = ""
        routes = []
        for decision in decisions:
            cust_id, tasks = decision.entry.cust_id, decision.request.submission.tasks
            size = sum([memoryview(task.body).nbytes for task in tasks])
            weight = decision.request.customer.weight
            is_heavy = self._heavy_customers.add(cust_id, len(tasks) + size // BYTES_PER_TASK, weight)
            if size > BULK:
                routes.append(_HEAVY_BULK if is_heavy else _ORDINARY_BULK)
            elif is_heavy:
                routes.append(self._heavy[zlib.crc32(cust_id.encode()) % len(self._heavy)])
            else:
                ordinary = ordinary or next(self._ordinary)
                routes.append(ordinary)
        return routes
