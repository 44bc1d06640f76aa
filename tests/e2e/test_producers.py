"""`ingest producer`: queues for one direct producer, with the real commands, RabbitMQ and Aerospike."""

import asyncio
import json
from pathlib import Path
from uuid import uuid4

from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.domain.topology import own_queues
from tests.e2e.processes import Ingest, run_ingest
from tests.servers import AerospikeServer, RabbitServer


async def test_producer_gets_own_queues_and_loses_them_again(
    rabbitmq: RabbitServer, rabbitmq_url: str, aerospike: AerospikeServer, tmp_path: Path
) -> None:
    """Mistakes are answered with what to do."""
    customer = f"acme{uuid4().hex[:8]}"
    plain = {"INGEST_BROKER_URL": rabbitmq_url, "INGEST_STORE_URL": aerospike.url}
    env = plain | {"INGEST_MANAGEMENT_URL": rabbitmq.management_url.replace("//", "//guest:guest@")}

    async def ingest(*arguments: str, env: dict[str, str] = env) -> tuple[int, str]:
        done = await asyncio.to_thread(run_ingest, *arguments, env=env, directory=tmp_path)
        return done.returncode, done.stdout + done.stderr

    async def fails(*arguments: str, because: str, env: dict[str, str] = env) -> None:
        code, output = await ingest(*arguments, env=env)
        assert (code, because in output) == (2, True), output

    add, remove = ("producer", "add", customer), ("producer", "remove", customer)
    await fails(*add, because="`ingest producer add` needs RabbitMQ", env={})
    await fails(*add, because="needs INGEST_MANAGEMENT_URL", env=plain)
    await fails(*add, because=f"there is no customer {customer}")
    assert (await ingest("customer", "add", customer))[0] == 0
    await fails(*add, because="run `ingest topology apply` first")
    assert (await ingest("topology", "apply"))[0] == 0
    assert (await ingest("customer", "set", customer, "--weight", "2"))[0] == 0
    assert await ingest(*add) == (0, f"{customer} has queues of its own, with weight 2\n")
    for weight in (2.0, 3.0):
        assert (await ingest("customer", "set", customer, "--weight", str(weight)))[0] == 0
        listed = json.loads((await ingest("producer", "list", "--json"))[1])
        assert {"cust_id": customer, "weight": weight} in listed
    assert (await ingest("topology", "check"))[0] == 0
    status = json.loads((await ingest("status", "--json"))[1])
    names = [queue.name for queue in own_queues(customer)]
    assert set(names) < {queue["name"] for queue in status["broker"]["queues"]}
    assert "ingest.direct.*" in (await ingest("status", "--once"))[1]
    with Ingest("work", directory=tmp_path, env=env) as work:
        work.wait_for("own_queues_consumed")
        code, output = await ingest(*remove)
        assert (code, f"{customer} uses the shared queues" in output) == (0, True), output
    assert list((await RabbitBroker(rabbitmq_url).inspect(names)).queues.values()) == [None, None]
    await fails(*remove, because=f"{customer} has no queues of its own")
