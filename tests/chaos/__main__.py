"""`scripts/chaos`: inject faults under load, then check that nothing was lost or doubled."""

import argparse
import asyncio
import logging
import sys
from typing import Final

from tests.chaos import faults
from tests.chaos.run import run
from tests.servers import Unavailable

CANNOT_RUN: Final = "cannot run here"


def main() -> int:
    known_faults = faults.load()
    parser = argparse.ArgumentParser(
        prog="scripts/chaos",
        description="Runs two shims and three workers on a private RabbitMQ cluster of three nodes and a private "
        "Aerospike, of one or several nodes; sends submissions, injects faults, drains and checks. The exit code is 1 "
        "if an invariant is broken and 2 if a server cannot run on this machine.",
        epilog="faults (store-node-… and others of one Aerospike node need --aerospike-nodes 3; rolling-upgrade "
        "needs --upgrade-from):\n"
        + "\n".join(f"  {name:26}{(inject.__doc__ or '').strip()}" for name, inject in known_faults.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--seconds", type=float, default=600, help="minimum duration; every fault is injected at least once"
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of the load and of the order of faults")
    parser.add_argument(
        "--fault", action="append", metavar="NAME", help="inject only this fault; repeatable; `list` prints the names"
    )
    parser.add_argument("--rate", type=float, default=20, help="submissions per second")
    parser.add_argument(
        "--aerospike-nodes",
        type=int,
        default=1,
        metavar="N",
        help="Aerospike nodes; several hold two copies of a record",
    )
    parser.add_argument(
        "--upgrade-from",
        metavar="COMMIT",
        help="begin with the code of this commit; the fault rolling-upgrade changes the processes to this checkout",
    )
    parser.add_argument("--span", type=float, default=1.0, help="factor for the duration of faults")
    arguments = parser.parse_args()
    nodes = arguments.aerospike_nodes
    unusable = set() if arguments.upgrade_from else faults.NEEDS_EARLIER_VERSION
    names = arguments.fault or [
        name for name in known_faults if faults.NODES_NEEDED[name] <= nodes and name not in unusable
    ]
    if names == ["list"]:
        print("\n".join(known_faults))
        return 0
    if unknown := sorted(set(names) - set(known_faults)):
        parser.error(f"unknown faults {unknown}; `--fault list` lists them")
    if lacking := [name for name in names if faults.NODES_NEEDED[name] > nodes]:
        parser.error(f"{lacking[0]} needs --aerospike-nodes {faults.NODES_NEEDED[lacking[0]]}")
    if lacking := sorted(unusable.intersection(names)):
        parser.error(f"{lacking[0]} needs --upgrade-from")
    for library in ("aiormq", "aio_pika"):
        # The faults break the connections of observers and producers, too; the libraries log every one.
        logging.getLogger(library).setLevel(logging.CRITICAL)
    try:
        result, text = asyncio.run(
            run(
                names,
                arguments.seconds,
                arguments.seed,
                arguments.rate,
                arguments.span,
                nodes,
                arguments.upgrade_from,
            )
        )
    except Unavailable as error:
        print(f"{CANNOT_RUN}: {error}", file=sys.stderr)
        return 2
    print(text)
    return 1 if result.broken else 0


if __name__ == "__main__":
    sys.exit(main())
