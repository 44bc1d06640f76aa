"""Checks whether an Aerospike cluster can keep the guarantees of the ledger."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from ingest.domain.findings import Finding, error, ok, warning
from ingest.store.aerospike.info import Node

AREA: Final = "store"
_OLDEST: Final = 6
_PAIR: Final = 2
"""Nodes of a cluster in which no side of a split is the larger one."""
_SKEW: Final = (1_500, 10_000)
"""Milliseconds between clocks that cause a warning, and an error: a lease is 30 s."""
# The names differ by version: up to 6, 7 and later.
_EVICTION: Final = (
    "high-water-disk-pct",
    "high-water-memory-pct",
    "evict-sys-memory-pct",
    "evict-indexes-memory-pct",
    "evict-mounts-pct",
    "storage-engine.evict-used-pct",
)
_USED: Final = ("data_used_pct", "device_used_pct", "memory_used_pct")
_FREE: Final = ("data_avail_pct", "device_available_pct")
_BACKING: Final = ("storage-engine.file[0]", "storage-engine.device[0]")
_SETS: Final = ("ledger", "quota", "customer", "api_key", "key_info")


def findings(
    nodes: Sequence[Node], namespace: str, now: Callable[[], float] = time.time, *, hosts: int = 1
) -> list[Finding]:
    """Return all findings about all nodes. A finding that several nodes share is listed once.

    Args:
        nodes: what the nodes report.
        namespace: the namespace of the service.
        now: Unix time in seconds.
        hosts: the number of hosts in INGEST_STORE_URL; each should be a node of the cluster.
    """
    with_namespace = [node for node in nodes if node.namespace]
    results = [*_cluster(nodes, hosts)]
    if missing := [node for node in nodes if not node.namespace]:
        known = sorted({name for node in missing for name in node.namespaces if name})
        results.append(
            error(
                AREA,
                f"{_names(missing)} has no namespace {namespace}; it has {', '.join(known) or 'none that is visible'}",
                "add it to aerospike.conf (deploy/aerospike/aerospike.conf), or name another in INGEST_STORE_URL",
            )
        )
    checks = (_expiry, _eviction, _writes, _free_space, _durability, _copies, _consistency, _sets)
    for check in checks:
        results += dict.fromkeys(finding for node in with_namespace for finding in check(node))
    return [*results, *_clocks(with_namespace, now)]


def _cluster(nodes: Sequence[Node], hosts: int) -> Iterator[Finding]:
    builds = sorted({f"{node.build} {node.edition}" for node in nodes})
    if any(node.major < _OLDEST for node in nodes):
        yield error(AREA, f"Aerospike {', '.join(builds)}", f"upgrade it: {_OLDEST}.0 is the oldest that works")
    else:
        yield ok(AREA, f"Aerospike {', '.join(builds)}, {len(nodes)} node{'s' * (len(nodes) > 1)}")
    keys = {node.statistics.get("cluster_key") for node in nodes}
    sizes = {node.statistics.get("cluster_size", "0") for node in nodes}
    whole = all(node.statistics.get("cluster_integrity", "true") == "true" for node in nodes)
    if len(keys) > 1 or not whole or sizes != {str(len(nodes))}:
        yield error(
            AREA,
            f"the cluster is split: {len(nodes)} nodes answer, they see {', '.join(sorted(sizes))}",
            "repair the network or the mesh seeds in `heartbeat`; until then a key can be accepted on both sides "
            "(under one id)",
        )
    if len(nodes) < hosts:
        yield warning(
            AREA,
            f"INGEST_STORE_URL names {hosts} hosts, the cluster has {len(nodes)} node{'s' * (len(nodes) > 1)}",
            "start the missing nodes, or remove them from INGEST_STORE_URL",
        )
    if max(len(nodes), hosts) > _PAIR:
        yield from _smallest_cluster(nodes, max(len(nodes), hosts))


def _smallest_cluster(nodes: Sequence[Node], size: int) -> Iterator[Finding]:
    """Check that the smaller side of a split cluster stops serving records. In AP mode, this setting decides it."""
    majority = size // 2 + 1
    if any(node.is_true("strong-consistency") for node in nodes):
        return
    least = min(int(node.service.get("min-cluster-size", "1")) for node in nodes)
    if least < majority:
        yield warning(
            AREA,
            f"min-cluster-size is {least}: every side of a split cluster takes writes; the charges of one "
            "side are lost when they join again, and a side rejects submissions of customers whose records it lacks",
            f"set min-cluster-size {majority} in the section `service` of all {size} nodes",
        )
    else:
        yield ok(AREA, f"min-cluster-size {least}: the smaller side of a split cluster stops taking writes")


def _expiry(node: Node) -> Iterator[Finding]:
    period = node.number("nsup-period")
    if not period:
        ignored = node.is_true("allow-ttl-without-nsup")
        consequence = (
            "records never expire, and the ledger fills up"
            if ignored
            else "records with a time to live, as every record of the ledger has, are refused"
        )
        yield error(
            AREA,
            f"nsup-period is 0: {consequence}",
            "set nsup-period 120 in the namespace; on a running node, use "
            "`asinfo -v 'set-config:context=namespace;id=…;nsup-period=120'`",
        )
    else:
        yield ok(AREA, f"records expire (nsup-period {period:.0f} s)")
    default = node.number("default-ttl")
    yield ok(AREA, f"default-ttl is {default or 0:.0f}: it has no effect, because every record sets its own")


def _eviction(node: Node) -> Iterator[Finding]:
    limits = {name: value for name in _EVICTION if (value := node.number(name))}
    evicted = node.number("evicted_objects") or 0
    if evicted or node.is_true("hwm_breached"):
        yield error(
            AREA,
            f"records are evicted before they expire ({evicted:,.0f} so far): their keys can be accepted again",
            "add memory or disk, or shorten retention (`ingest customer set CUST --retention`); then forbid eviction",
        )
    if limits:
        shown = ", ".join(f"{name} {value:.0f}" for name, value in limits.items())
        yield warning(
            AREA,
            f"eviction is on ({shown}): when storage is short, keys are forgotten before their retention ends",
            "set them to 0: then writes are refused (503), and no key is forgotten",
        )
    else:
        yield ok(AREA, "eviction is off")


def _writes(node: Node) -> Iterator[Finding]:
    if node.is_true("stop_writes"):
        yield error(AREA, f"{node.name} refuses writes (stop_writes)", "free or add memory or disk: its log says which")
    if node.is_true("clock_skew_stop_writes"):
        yield error(AREA, f"{node.name} refuses writes: the clocks of the cluster differ", "run NTP on all nodes")
    for name in ("dead_partitions", "unavailable_partitions"):
        if count := node.number(name):
            yield error(AREA, f"{node.name} has {count:.0f} {name.replace('_', ' ')}", "start the missing nodes")
    if moving := node.number("migrate_tx_partitions_remaining"):
        yield warning(
            AREA, f"{node.name} still has to move {moving:.0f} partitions", "wait before you restart another node"
        )


def _free_space(node: Node) -> Iterator[Finding]:
    used = max((value for name in _USED if (value := node.number(name)) is not None), default=None)
    free = min((value for name in _FREE if (value := node.number(name)) is not None), default=None)
    stop = node.number("storage-engine.stop-writes-used-pct") or 100
    if (used is not None and used >= 0.8 * stop) or (free is not None and free < 20):
        shown = f"{used:.0f} % used" if free is None else f"{used or 0:.0f} % used, {free:.0f} % free to write"
        yield warning(
            AREA,
            f"{node.name} is nearly full: {shown}; writes stop at {stop:.0f} % used",
            "add storage or nodes, or shorten retention, before writes stop",
        )
    elif used is not None:
        yield ok(AREA, f"node {node.name} uses {used:.0f} % of its storage")


def _durability(node: Node) -> Iterator[Finding]:
    engine = node.namespace.get("storage-engine", "")
    if engine == "memory" and not any(node.namespace.get(name) for name in _BACKING):
        yield _in_memory(node)
    elif node.edition == "Community":
        # The Community Edition refuses to start with commit-to-device.
        behind = node.number("storage-engine.flush-max-ms") or 1000
        what = f"a crash of a node can lose the claims of the last {behind:.0f} ms that no other node has"
        if (node.number("replication-factor") or 1) < 2:
            yield warning(AREA, what, "set replication-factor 2, or lower flush-max-ms")
        else:
            yield ok(AREA, what)
    elif not node.is_true("storage-engine.commit-to-device"):
        yield warning(
            AREA,
            "commit-to-device is false: a crash of a node can lose the last second of claims",
            "set commit-to-device true, or replication-factor 2 or more",
        )
    else:
        yield ok(AREA, "every write is on disk before it is acknowledged")


def _in_memory(node: Node) -> Finding:
    everything = "customers, API keys, quotas, and the keys of submissions"
    do = "use storage-engine device, or give storage-engine memory a file (deploy/aerospike/aerospike.conf)"
    if (node.number("effective_replication_factor") or node.number("replication-factor") or 1) < 2:
        return error(AREA, f"the namespace is only in memory: if the node stops, everything is lost: {everything}", do)
    return warning(AREA, f"the namespace is only in memory: if all nodes stop, everything is lost: {everything}", do)


def _copies(node: Node) -> Iterator[Finding]:
    size = node.number("ns_cluster_size") or 1
    wanted = node.number("replication-factor") or 1
    has = node.number("effective_replication_factor") or wanted
    if has < wanted:
        yield warning(AREA, f"{has:.0f} of {wanted:.0f} copies: too few nodes are up", "start the missing nodes")
    elif wanted < 2:
        do = "set replication-factor 2" if size > 1 else "add a node and set replication-factor 2"
        yield warning(
            AREA, "replication-factor is 1: if a node stops, its part of the ledger is unavailable or lost", do
        )
    else:
        yield ok(AREA, f"{has:.0f} copies of each record")
    if size > 1 and node.namespace.get("write-commit-level-override") == "master":
        yield warning(
            AREA,
            "write-commit-level-override is master: a write is acknowledged before it has a second copy",
            "set it to off, its default: then a write has all its copies before it is acknowledged",
        )


def _consistency(node: Node) -> Iterator[Finding]:
    if node.is_true("strong-consistency"):
        yield ok(AREA, "strong consistency: a split cluster does not accept a key twice")
    else:
        # Not a warning: the Community Edition has only this mode, and ids do not depend on it.
        yield ok(AREA, "AP mode: a split cluster may accept one key on both sides, under the same id")


def _sets(node: Node) -> Iterator[Finding]:
    for limits in node.sets:
        for name in ("stop-writes-count", "stop-writes-size"):
            if limits.get("set") in _SETS and limits.get(name, "0") != "0":
                do = "remove it: above this limit clients get 503"
                yield warning(AREA, f"set {limits['set']} has {name} {limits[name]}", do)


def _clocks(nodes: Sequence[Node], now: Callable[[], float]) -> Iterator[Finding]:
    skews = [float(node.statistics.get("cluster_clock_skew_ms", "0")) for node in nodes]
    here = now()
    # The nodes' clocks are in whole seconds, and the answer took a moment.
    skews += [max(0.0, abs(here - node.clock - 0.5) - 1.0) * 1000 for node in nodes if node.clock is not None]
    worst = max(skews, default=0.0)
    if worst > _SKEW[1]:
        yield error(AREA, f"clocks are {worst / 1000:.1f} s apart", "run NTP on all nodes and here: leases are 30 s")
    elif worst > _SKEW[0]:
        yield warning(AREA, f"clocks are {worst / 1000:.1f} s apart", "run NTP on all nodes and here")
    else:
        yield ok(AREA, "clocks agree, among the nodes and with this machine")


def _names(nodes: Iterable[Node]) -> str:
    return ", ".join(node.name for node in nodes)
