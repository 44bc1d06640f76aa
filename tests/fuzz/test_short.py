"""A short run of `scripts/fuzz`, which by default sends 100,000 bodies to each entry point."""

from collections.abc import Awaitable, Callable

import pytest

from tests.fuzz.run import Outcome, fuzz_amqp, fuzz_http
from tests.fuzz.world import World
from tests.servers import AerospikeServer, RabbitServer

Run = Callable[[World, int, int], Awaitable[Outcome]]


# The seeds differ because both runs use the same Aerospike, where equal keys would be duplicates.
@pytest.mark.parametrize(("run", "seed"), [(fuzz_http, 7), (fuzz_amqp, 8)])
async def test_hostile_submissions_violate_no_invariant(
    rabbitmq: RabbitServer, aerospike: AerospikeServer, run: Run, seed: int
) -> None:
    with World(rabbitmq, aerospike) as world:
        outcome = await run(world, 2000, seed)
    assert outcome.violations == []
    assert len(outcome.counts) > 5
