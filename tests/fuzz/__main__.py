"""`scripts/fuzz`: hostile input by the thousand."""

import argparse
import asyncio
import json
import sys

import msgspec

from tests.fuzz.run import over_amqp, over_http
from tests.fuzz.world import World
from tests.servers import AerospikeServer, RabbitServer, Unavailable

_WAYS = {"http": over_http, "amqp": over_amqp}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/fuzz",
        description="Runs a shim and a worker on a private RabbitMQ and a private Aerospike and sends them generated "
        "hostile submissions. Prints what became of them as JSON. Exit code 1 where an invariant is broken.",
    )
    parser.add_argument("ways", nargs="*", metavar="http|amqp", help="default: both")
    parser.add_argument("--bodies", type=int, default=100_000, help="on each way (default 100000)")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    if unknown := set(arguments.ways) - set(_WAYS):
        parser.error(f"no such way: {', '.join(unknown)}")
    try:
        rabbitmq = RabbitServer()
        stores = {way: AerospikeServer() for way in arguments.ways or _WAYS}  # both use the same keys
    except Unavailable as error:
        print(f"cannot run here: {error}", file=sys.stderr)
        return 2
    broken = False
    for way, aerospike in stores.items():
        with World(rabbitmq, aerospike) as world:
            outcome = asyncio.run(_WAYS[way](world, arguments.bodies, arguments.seed))
        print(json.dumps(msgspec.to_builtins(outcome), indent=1), flush=True)
        aerospike.stop()
        broken = broken or bool(outcome.broken)
    rabbitmq.stop()
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
