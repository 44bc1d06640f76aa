"""Fixtures of the worker's tests; a module that uses `harness` has a `store` of its own."""

import pytest

from ingest.domain.ports import Store
from tests.support.fakes import Clock
from tests.support.worker_harness import ProcessorHarness


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def harness(store: Store, clock: Clock) -> ProcessorHarness:
    return ProcessorHarness(store, clock=clock)
