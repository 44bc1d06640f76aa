"""The state of an Aerospike cluster."""

import time

from ingest.domain.errors import StoreUnavailable
from ingest.domain.overview import StoreState
from ingest.store.aerospike.info import AerospikeView, Node

_USED = ("data_used_pct", "device_used_pct", "memory_used_pct")


async def store_state(view: AerospikeView) -> StoreState:
    """Return the state; an outage is part of it and raises nothing."""
    try:
        nodes = await view.nodes()
        start = time.perf_counter()
        await view.ping()
        round_trip = time.perf_counter() - start
    except StoreUnavailable as error:
        return StoreState(name="Aerospike", problems=[str(error)])
    ours = [node for node in nodes if node.namespace]
    copies = max([node.number("effective_replication_factor") or 1 for node in ours], default=1)
    used = [value for node in ours for name in _USED if (value := node.number(name)) is not None]
    return StoreState(
        name=f"Aerospike, namespace {view.namespace}, {len(nodes)} node{'s' * (len(nodes) > 1)}",
        version=nodes[0].build,
        round_trip=round_trip,
        used=f"{max(used):.0f} % of storage" if used else "",
        entries=round(sum(node.number("objects") or 0 for node in ours) / copies) if ours else None,
        problems=[problem for node in nodes for problem in _problems(node, view.namespace)],
    )


def _problems(node: Node, namespace: str) -> list[str]:
    if not node.namespace:
        return [f"{node.name} has no namespace {namespace}"]
    flags = {
        "stop_writes": "refuses writes",
        "clock_skew_stop_writes": "refuses writes: the clocks of the cluster differ",
        "hwm_breached": "evicts records before they expire",
    }
    return [f"{node.name} {text}" for flag, text in flags.items() if node.is_true(flag)]
