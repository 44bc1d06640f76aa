"""Change admission, the ledger, the shim's pipeline and the worker in small ways, and count what the tests notice.

Each mutant is one change in a copy of the code: another comparison or constant, a condition that is always true or
false, a statement that is dropped. First the unit tests run (for the ledger in SQLite its contract tests), and if they
pass, the simulation. The exit code is 1 if fewer than 95 % of the mutants are killed that are not equivalent.
"""

import argparse
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue

from tests.mutation.equivalent import EQUIVALENT
from tests.mutation.mutants import Mutant, all_mutants
from tests.mutation.run import CodeCopy

_GOAL = 0.95
_TESTS, _SIMULATION, _EQUIVALENT, _SURVIVED = "killed by tests", "killed by simulation", "equivalent", "SURVIVED"


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/mutate", description=__doc__)
    parser.add_argument("--mutants", type=int, default=100, help="size of the random sample (default 100); 0: all")
    parser.add_argument("--seed", type=int, default=1, help="chooses the sample (default 1)")
    parser.add_argument("--schedules", type=int, default=5000, help="random schedules for a survivor (default 5000)")
    parser.add_argument("--only", default="", metavar="TEXT", help="only mutants whose name contains this text")
    parser.add_argument("--jobs", type=int, default=2, help="mutants that are tried at once (default 2)")
    options = parser.parse_args()
    with ExitStack() as stack:
        copies = [
            CodeCopy(Path(stack.enter_context(tempfile.TemporaryDirectory()))) for _ in range(max(1, options.jobs))
        ]
        copy = copies[0]
        everything = all_mutants(copy.package)
        for unknown in EQUIVALENT.keys() - {mutant.name for mutant in everything}:
            print(f"remove from tests/mutation/equivalent.py, because this mutant does not exist: {unknown}")
        mutants = [mutant for mutant in everything if options.only in mutant.name]
        if 0 < options.mutants < len(mutants):
            mutants = random.Random(options.seed).sample(mutants, options.mutants)
        if failing := copy.failing_test(sorted({mutant.file for mutant in mutants})):
            print(f"{failing} fails without a mutant", file=sys.stderr)
            return 2
        counts = _try_all(copies, mutants, options.schedules)
    judged = len(mutants) - counts[_EQUIVALENT]
    killed = judged - counts[_SURVIVED]
    print(
        f"{len(mutants)} of {len(everything)} mutants, seed {options.seed}: {counts[_TESTS]} killed by unit tests, "
        f"{counts[_SIMULATION]} by the simulation, {counts[_EQUIVALENT]} equivalent or about "
        f"logs, {counts[_SURVIVED]} survived: {killed} of {judged} killed ({killed / max(judged, 1):.1%})"
    )
    return 0 if killed >= _GOAL * judged else 1


def _try_all(copies: Sequence[CodeCopy], mutants: Sequence[Mutant], schedules: int) -> Counter[str]:
    """Try the mutants, as many at once as there are copies; count what becomes of them."""
    free: SimpleQueue[CodeCopy] = SimpleQueue()
    for copy in copies:
        free.put(copy)

    def try_one(mutant: Mutant) -> str:
        copy = free.get()
        try:
            return _try(copy, mutant, schedules)
        finally:
            free.put(copy)

    with ThreadPoolExecutor(len(copies)) as pool:
        return Counter(pool.map(try_one, mutants))


def _try(copy: CodeCopy, mutant: Mutant, schedules: int) -> str:
    """Print and return what becomes of a mutant."""
    source = (copy.package / mutant.file).read_bytes()
    copy.write(mutant.file, mutant.apply(source))
    result, reason = _SURVIVED, ""
    if test := copy.failing_test([mutant.file]):
        result, reason = _TESTS, test
    elif mutant.name in EQUIVALENT:
        result, reason = _EQUIVALENT, EQUIVALENT[mutant.name]
    elif found := copy.failing_schedules(schedules):
        result, reason = _SIMULATION, found
    copy.write(mutant.file, source)
    print(f"{result}: {mutant.name} (line {mutant.line})" + (f"\n    {reason}" if reason else ""), flush=True)
    return result


if __name__ == "__main__":
    sys.exit(main())
