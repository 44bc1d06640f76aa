"""The faults that the simulation must find can still be put into the code."""

from pathlib import Path

import pytest

import ingest
from tests.simulation.mutations import MUTATIONS, Mutation


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_mutation_fits_the_code(mutation: Mutation) -> None:
    root = Path(ingest.__file__).parent
    assert [(root / file).read_text().count(text) for file, text, _ in mutation.changes] == [1] * len(mutation.changes)
