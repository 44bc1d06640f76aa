"""A submission that kills whoever works on it, between many that do not."""

import asyncio
import json
import uuid
from pathlib import Path

import pytest

from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.domain import topology
from ingest.domain.messages import Delivery, Message, PublishOutcome
from tests.chaos.fleet import Process
from tests.e2e.processes import run_ingest
from tests.servers import AerospikeServer, RabbitServer
from tests.support.tasks import TASK

NEIGHBOURS = 300


async def take(broker: RabbitBroker, queue: str, count: int) -> list[Delivery]:
    consumer = await broker.consumer(queue, 1000)
    got: list[Delivery] = []
    while len(got) < count:
        some = await consumer.receive()
        await consumer.ack(some)
        got += some
    await consumer.close()
    return got


@pytest.mark.timeout(240)
async def test_poison_dies_alone(
    rabbitmq: RabbitServer, rabbitmq_url: str, aerospike: AerospikeServer, tmp_path: Path
) -> None:
    """It kills a worker on each delivery, ends in ingest.dead as it came, and all of its neighbours are accepted."""
    cust_id = f"c-{uuid.uuid4().hex[:8]}"
    env = {
        "INGEST_BROKER_URL": rabbitmq_url,
        "INGEST_STORE_URL": aerospike.url,
        "INGEST_MANAGEMENT_URL": rabbitmq.management_url.replace("//", "//guest:guest@"),
        "CHAOS_POISON": "poison",
    }
    for command in (["topology", "apply"], ["customer", "add", cust_id]):
        done = run_ingest(*command, env=env, directory=tmp_path)
        assert done.returncode == 0, done.stderr
    broker = RabbitBroker(rabbitmq_url)
    publisher = await broker.publisher()
    ids = [f"m{i}" for i in range(NEIGHBOURS)]
    ids.insert(NEIGHBOURS // 2, "poison")
    key = f"task.submitted.{cust_id}"
    body = json.dumps(TASK).encode()
    sent = [Message(exchange=topology.SUBMISSIONS, routing_key=key, body=body, message_id=id_) for id_ in ids]
    assert set(await publisher.publish(sent)) == {PublishOutcome.CONFIRMED}
    workers = [Process("work", f"worker-{i}", tmp_path, env) for i in range(4)]
    keeping = []
    try:
        for worker in workers:
            worker.start()
            keeping.append(asyncio.create_task(worker.keep_running()))
        (dead,) = await take(broker, topology.INGEST_DEAD, 1)
        events = await take(broker, topology.CONSENSUS_TASKS, NEIGHBOURS)
    finally:
        for task in keeping:
            task.cancel()
        for worker in workers:
            worker.kill()
    assert (dead.message_id, dead.body, dead.headers["x-first-death-reason"]) == ("poison", body, "delivery_limit")
    assert len({json.loads(each.body)["data"]["task_id"] for each in events}) == NEIGHBOURS
    kills = (tmp_path / "violations").read_text().count("poisoned")
    assert kills == topology.DELIVERY_LIMIT + 1
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(take(broker, topology.INGEST_DEAD, 1), 2)
    await broker.close()
