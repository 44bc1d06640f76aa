"""A submission that kills every worker that processes it, among many harmless ones."""

import asyncio
import json
import time
import uuid
from pathlib import Path

import pytest

from ingest.broker.bundles.broker import BundlingBroker
from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.domain import topology
from ingest.domain.admitted import Admitted, to_message
from ingest.domain.messages import Delivery, Message, PublishOutcome
from ingest.domain.ports import Broker
from ingest.domain.submissions import task_submission
from tests.chaos.fleet import Process
from tests.e2e.processes import run_ingest
from tests.servers import AerospikeServer, RabbitServer
from tests.support.tasks import TASK

NEIGHBOURS = 300


def new_customer() -> str:
    return f"c-{uuid.uuid4().hex[:8]}"


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
    key = f"task.submitted.{new_customer()}"
    body = json.dumps(TASK).encode()
    messages = [
        Message(exchange=topology.SUBMISSIONS, routing_key=key, body=body, message_id=f"m{number}")
        for number in range(NEIGHBOURS + 1)
    ]
    servers = rabbitmq, rabbitmq_url, aerospike.url, tmp_path
    kills = await kill_workers(*servers, RabbitBroker(rabbitmq_url), messages)
    assert kills == topology.DELIVERY_LIMIT + 1


@pytest.mark.timeout(240)
async def test_submission_that_kills_workers_takes_no_other_of_its_bundle_with_it(
    rabbitmq: RabbitServer, rabbitmq_url: str, aerospike: AerospikeServer, tmp_path: Path
) -> None:
    """The bundle kills two workers; the third takes it apart. Then it is as if the submission had come alone."""
    cust_id = new_customer()
    messages = [
        to_message(Admitted(task_submission(TASK, cust_id, None, f"k{number}"), int(time.time() * 1000), 86_400))
        for number in range(NEIGHBOURS + 1)
    ]
    servers = rabbitmq, rabbitmq_url, aerospike.url, tmp_path
    broker = BundlingBroker(RabbitBroker(rabbitmq_url), frozenset({"guest"}))
    kills = await kill_workers(*servers, broker, messages)
    assert kills == 2 + topology.DELIVERY_LIMIT + 1


async def kill_workers(
    rabbitmq: RabbitServer, url: str, store_url: str, directory: Path, publishing: Broker, messages: list[Message]
) -> int:
    """Publish submissions, of which the one in the middle kills the workers; return how many it kills.

    It must become the only dead letter, unchanged, and all others must be accepted.
    """
    poison = messages[NEIGHBOURS // 2]
    env = {
        "INGEST_BROKER_URL": url,
        "INGEST_STORE_URL": store_url,
        "INGEST_MANAGEMENT_URL": rabbitmq.management_url.replace("//", "//guest:guest@"),
        "CHAOS_POISON": poison.message_id,
    }
    for command in (["topology", "apply"], ["customer", "add", poison.routing_key.rpartition(".")[2]]):
        completed = run_ingest(*command, env=env, directory=directory)
        assert completed.returncode == 0, completed.stderr
    broker = RabbitBroker(url)
    publisher = await publishing.publisher()
    assert set(await publisher.publish(messages)) == {PublishOutcome.CONFIRMED}
    workers = [Process("work", f"worker-{number}", directory, env) for number in range(4)]
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
    assert (dead_letter.message_id, dead_letter.body) == (poison.message_id, poison.body)
    assert dead_letter.headers["x-first-death-reason"] == "delivery_limit"
    assert len({json.loads(event.body)["data"]["task_id"] for event in events}) == NEIGHBOURS
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(consume(broker, topology.INGEST_DEAD, 1), 2)
    await publishing.close()
    await broker.close()
    return (directory / "violations").read_text().count("poisoned")
