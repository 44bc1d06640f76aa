"""`scripts/chaos`: break things on purpose, and check that nothing was lost or doubled."""

import argparse
import asyncio
import logging
import sys

from tests.chaos import faults
from tests.chaos.run import run
from tests.servers import Unavailable


def main() -> int:
    known = faults.load()
    parser = argparse.ArgumentParser(
        prog="scripts/chaos",
        description="Runs two shims and three workers on a private RabbitMQ cluster of three nodes and a private "
        "Aerospike, sends submissions, injects faults, drains and checks. Exit code 1 where an invariant is broken.",
        epilog="faults:\n"
        + "\n".join(f"  {name:26}{(inject.__doc__ or '').strip()}" for name, inject in known.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=600, help="at least so long; every fault comes at least once")
    parser.add_argument("--seed", type=int, default=1, help="of load and schedule")
    parser.add_argument("--fault", action="append", metavar="NAME", help="only these, repeatable; `list` lists them")
    parser.add_argument("--rate", type=float, default=20, help="submissions a second")
    parser.add_argument("--span", type=float, default=1.0, help="scales how long faults last")
    arguments = parser.parse_args()
    names = arguments.fault or list(known)
    if names == ["list"]:
        print("\n".join(known))
        return 0
    if unknown := sorted(set(names) - set(known)):
        parser.error(f"unknown faults {unknown}; `--fault list` lists them")
    for name in ("aiormq", "aio_pika"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # the observers' own connections are broken all the time
    try:
        result, text = asyncio.run(run(names, arguments.seconds, arguments.seed, arguments.rate, arguments.span))
    except Unavailable as error:
        print(f"cannot run here: {error}", file=sys.stderr)
        return 2
    print(text)
    return 1 if result.broken else 0


if __name__ == "__main__":
    sys.exit(main())
