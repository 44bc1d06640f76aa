"""Which faults, in which order: seeded, so that a run can be repeated."""

import random
from collections.abc import Iterator, Sequence


def order(names: Sequence[str], rng: random.Random) -> Iterator[tuple[str, bool]]:
    """(name, whether it is a repeat): each once, in random order; then again, for as long as there is time."""
    first = True
    while True:
        shuffled = list(names)
        rng.shuffle(shuffled)
        for name in shuffled:
            yield name, not first
        first = False
