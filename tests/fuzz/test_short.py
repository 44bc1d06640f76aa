"""A short run of `scripts/fuzz`; its command runs 100,000 bodies each."""

import pytest

from tests.fuzz.run import over_amqp, over_http
from tests.fuzz.world import World
from tests.servers import AerospikeServer, RabbitServer


# Another seed each: on one Aerospike the keys of the first are the second's duplicates.
@pytest.mark.parametrize(("run", "seed"), [(over_http, 7), (over_amqp, 8)])
async def test_hostile_submissions(rabbitmq: RabbitServer, aerospike: AerospikeServer, run: object, seed: int) -> None:
    """No 5xx, no defect, nothing lost, doubled or redelivered on and on; what is refused is in ingest.dead."""
    with World(rabbitmq, aerospike) as world:
        outcome = await run(world, 2000, seed)  # type: ignore[operator]
    assert outcome.broken == []
    assert len(outcome.counts) > 5
