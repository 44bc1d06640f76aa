"""The command of `scripts/fuzz`."""

import argparse
import asyncio
import json
import sys

import msgspec

from tests.fuzz.run import fuzz_amqp, fuzz_http
from tests.fuzz.world import World
from tests.servers import AerospikeServer, RabbitServer, Unavailable

_RUNS = {"http": fuzz_http, "amqp": fuzz_amqp}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/fuzz",
        description="Runs a shim and a worker on a private RabbitMQ and a private Aerospike and sends them generated "
        "hostile submissions. Prints their outcomes as JSON. The exit code is 1 if an invariant is violated.",
    )
    parser.add_argument("entry_points", nargs="*", metavar="http|amqp", help="default: both")
    parser.add_argument("--bodies", type=int, default=100_000, help="per entry point (default 100000)")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    entry_points = arguments.entry_points or list(_RUNS)
    if unknown := set(entry_points) - set(_RUNS):
        parser.error(f"unknown entry point: {', '.join(unknown)}")
    try:
        rabbitmq = RabbitServer()
        # Each entry point needs its own store, because both use the same idempotency keys.
        stores = {entry_point: AerospikeServer() for entry_point in entry_points}
    except Unavailable as error:
        print(f"cannot start the servers: {error}", file=sys.stderr)
        return 2
    violated = False
    for entry_point, aerospike in stores.items():
        with World(rabbitmq, aerospike) as world:
            outcome = asyncio.run(_RUNS[entry_point](world, arguments.bodies, arguments.seed))
        print(json.dumps(msgspec.to_builtins(outcome), indent=1), flush=True)
        aerospike.stop()
        violated = violated or bool(outcome.violations)
    rabbitmq.stop()
    return 1 if violated else 0


if __name__ == "__main__":
    sys.exit(main())
