"""A submission that kills every worker that processes it, among many harmless ones."""

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


async def consume(broker: RabbitBroker, queue: str, count: int) -> list[Delivery]:
    """Receive and acknowledge at least `count` deliveries."""
    consumer = await broker.consumer(queue, 1000)
    consumed: list[Delivery] = []
    while len(consumed) < count:
        received = await consumer.receive()
        await consumer.ack(received)
        consumed += received
    await consumer.close()
    return consumed


@pytest.mark.timeout(240)
async def test_submission_that_kills_workers_is_dead_lettered_alone(
    rabbitmq: RabbitServer, rabbitmq_url: str, aerospike: AerospikeServer, tmp_path: Path
) -> None:
    """It kills one worker per delivery and is dead-lettered unchanged; all of its neighbours are accepted."""
    cust_id = f"c-{uuid.uuid4().hex[:8]}"
    env = {
        "INGEST_BROKER_URL": rabbitmq_url,
        "INGEST_STORE_URL": aerospike.url,
        "INGEST_MANAGEMENT_URL": rabbitmq.management_url.replace("//", "//guest:guest@"),
        "CHAOS_POISON": "poison",
    }
    for command in (["topology", "apply"], ["customer", "add", cust_id]):
        completed = run_ingest(*command, env=env, directory=tmp_path)
        assert completed.returncode == 0, completed.stderr
    broker = RabbitBroker(rabbitmq_url)
    publisher = await broker.publisher()
    message_ids = [f"m{number}" for number in range(NEIGHBOURS)]
    message_ids.insert(NEIGHBOURS // 2, "poison")
    key = f"task.submitted.{cust_id}"
    body = json.dumps(TASK).encode()
    messages = [
        Message(exchange=topology.SUBMISSIONS, routing_key=key, body=body, message_id=message_id)
        for message_id in message_ids
    ]
    assert set(await publisher.publish(messages)) == {PublishOutcome.CONFIRMED}
    workers = [Process("work", f"worker-{number}", tmp_path, env) for number in range(4)]
    supervisors = []
    try:
        for worker in workers:
            worker.start()
            supervisors.append(asyncio.create_task(worker.keep_running()))
        (dead_letter,) = await consume(broker, topology.INGEST_DEAD, 1)
        events = await consume(broker, topology.CONSENSUS_TASKS, NEIGHBOURS)
    finally:
        for supervisor in supervisors:
            supervisor.cancel()
        for worker in workers:
            worker.kill()
    assert (dead_letter.message_id, dead_letter.body) == ("poison", body)
    assert dead_letter.headers["x-first-death-reason"] == "delivery_limit"
    assert len({json.loads(event.body)["data"]["task_id"] for event in events}) == NEIGHBOURS
    kills = (tmp_path / "violations").read_text().count("poisoned")
    assert kills == topology.DELIVERY_LIMIT + 1
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(consume(broker, topology.INGEST_DEAD, 1), 2)
    await broker.close()
