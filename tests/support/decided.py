"""Results of a store that decided all of them."""

from collections.abc import Sequence
from typing import TypeVar

from ingest.domain.ledger import Undecided

T = TypeVar("T")


def decided(results: Sequence[T | Undecided]) -> list[T]:
    """Return the results of a call; assert that the store could decide all of them."""
    known = [result for result in results if not isinstance(result, Undecided)]
    assert len(known) == len(results)
    return known
