"""The order of the faults. It is seeded, so that a run can be repeated."""

import random
from collections.abc import Iterator, Sequence


def order(names: Sequence[str], rng: random.Random) -> Iterator[tuple[str, bool]]:
    """Yield (name, is a repeat) without end: all names in random order, then all in another random order, and so on."""
    first = True
    while True:
        shuffled = list(names)
        rng.shuffle(shuffled)
        for name in shuffled:
            yield name, not first
        first = False
