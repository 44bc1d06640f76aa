"""Run random schedules of submissions and faults against a simulated store and broker.

The first schedule that breaks a guarantee is shortened and printed; `--seed` with its number repeats it.
"""

import argparse
import sys
import time

from tests.simulation.mutation_runs import find_mutations
from tests.simulation.run import explain, run_schedules


def main() -> int:
    """Return 1 if a schedule breaks a guarantee."""
    parser = argparse.ArgumentParser(prog="scripts/simulate", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to run (default 60)")
    parser.add_argument(
        "--seed", type=int, default=1, help="the first seed, the next schedule has the next one (default 1)"
    )
    parser.add_argument("--schedules", type=int, help="stop after so many schedules")
    parser.add_argument(
        "--mutations",
        nargs="?",
        const="",
        metavar="NAME",
        help="put known faults (whose name contains NAME) into a copy of the code, and find them",
    )
    options = parser.parse_args()
    if options.mutations is not None:
        return min(find_mutations(options.schedules or 20_000, options.mutations), 1)
    began = time.monotonic()
    result = run_schedules(options.seed, seconds=options.seconds, schedules=options.schedules)
    rate = result.schedules / (time.monotonic() - began)
    print(f"{result.schedules:,} schedules from seed {options.seed}, {rate:,.0f} a second")
    print(explain(result.failure))
    return 0 if result.failure is None else 1


if __name__ == "__main__":
    sys.exit(main())
