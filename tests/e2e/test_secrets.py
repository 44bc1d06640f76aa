"""Secrets never come out: neither in logs at any level, nor in errors, through successes and failures."""

import base64
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.processes import Ingest, run_ingest
from tests.fuzz.world import CUSTOMER, World
from tests.servers import AerospikeServer, RabbitServer
from tests.servers.process import wait_until

TOKENS = ("tokenInDataUrl", "tokenInCallback", "tokenInHook", "tokenInQuery", "s3cretKeyOfNobody", "cookieSecret")
PASSWORDS = ("pass%2Fw0rdA", "pass/w0rdA")
DATA_URL = f"https://cdn.example.com/doc.txt?token={TOKENS[0]}"


@pytest.fixture
def world(rabbitmq: RabbitServer, aerospike: AerospikeServer) -> Iterator[World]:
    with World(rabbitmq, aerospike, {"INGEST_LOG_LEVEL": "debug", "INGEST_LOG_FORMAT": "json"}) as world:
        yield world


def _bodies() -> list[dict[str, Any]]:
    task: dict[str, Any] = {
        "type": "sentiment",
        "data_url": DATA_URL,
        "label_spec": {"question": "q", "options": ["a", "b"]},
    }
    hook = f"https://hooks.example/h?t={TOKENS[1]}"
    return [
        task,
        task | {"idempotency_key": "k"},
        task | {"idempotency_key": "k"},
        task | {"idempotency_key": "k", "type": "moderation"},
        task | {"callback_url": hook},
        task | {"data_url": DATA_URL.replace("https", "http")},
        task | {"data_url": DATA_URL.replace("cdn", f"user:{TOKENS[2]}@cdn")},
        task | {"label_spec": DATA_URL},
        task | {DATA_URL: 1},
        {"tasks": [task, task | {"callback_url": hook}]},
        {"tasks": [task] * 3, "callback_url": hook},
    ]


def test_no_process_ever_tells_one(world: World, rabbitmq: RabbitServer) -> None:
    """At level debug: what is accepted, replayed, mismatched and refused; then with the broker's connections broken."""
    world.ingest("webhook", "add", CUSTOMER, f"https://hooks.example/{TOKENS[2]}")
    key = world.keys[CUSTOMER]
    answers = []
    with httpx.Client(base_url=world.url, timeout=20) as client:
        for authorization in (
            f"Bearer {key}",
            f"Bearer {TOKENS[4]}",
            f"Basic {TOKENS[4]}",
            f"{key}",
            f"bearer\t{key}x",
        ):
            headers = {"Authorization": authorization, "Cookie": f"a={TOKENS[5]}"}
            for body in _bodies():
                path = "/v1/tasks/batch" if "tasks" in body else "/v1/tasks"
                answers.append(client.post(f"{path}?t={TOKENS[3]}", json=body, headers=headers))
            answers.append(client.get(f"/v1/tasks/{TOKENS[4]}?t={TOKENS[3]}", headers=headers))
        answers.append(client.post("/v1/tasks", content=b"{", headers={"Authorization": f"Bearer {key}"}))
    assert {200, 202, 400, 401, 404, 415} == {answer.status_code for answer in answers}
    wait_until(lambda: "accepted" in world.worker.text(), "the worker's log", 20)
    for connection in rabbitmq.api("GET", "connections"):
        if connection["vhost"] in world.admin_url:
            rabbitmq.close_connection(connection["name"])
    world.shim.stop()
    world.worker.stop()
    for text in (world.shim.text(), world.worker.text(), "".join(answer.text for answer in answers if answer.is_error)):
        assert text
        # The name of an unknown field is told to who has sent it, and to nobody else.
        _has_none(text.replace(f"{DATA_URL} is not a known field", ""), (*TOKENS, key, "password-of-"))


@pytest.mark.parametrize(
    ("variable", "url"),
    [
        ("INGEST_BROKER_URL", "amqp://user:{password}@127.0.0.1:{port}/"),
        ("INGEST_BROKER_URL", "amqp://user:{password}@127.0.0.1:notaport/"),
        ("INGEST_BROKER_URL", "http://user:{password}@127.0.0.1:{port}/"),
        ("INGEST_STORE_URL", "aerospike://user:{password}@127.0.0.1:{port}/test"),
        ("INGEST_STORE_URL", "aerospike://user:{password}@127.0.0.1:notaport"),
        ("INGEST_MANAGEMENT_URL", "http://user:{password}@127.0.0.1:{port}"),
    ],
)
def test_passwords_in_urls_that_do_not_work(variable: str, url: str, tmp_path: Path) -> None:
    """Commands and processes say what is wrong with host, port or form, without the password."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and nobody listens
        password = PASSWORDS[0]
        env = {
            variable: url.format(password=password, port=taken.getsockname()[1]),
            "INGEST_LOG_LEVEL": "debug",
            "INGEST_DATA_DIR": str(tmp_path / "data"),
        }
        texts = []
        for command in (["topology", "check"], ["customer", "list"], ["doctor"]):
            done = run_ingest(*command, env=env, directory=tmp_path)
            texts.append(done.stdout + done.stderr)
        with Ingest("work", directory=tmp_path, env=env) as work:
            with suppress(subprocess.TimeoutExpired):  # it waits for its servers
                work.process.wait(2)
            texts.append(work.text())
    assert any(texts)
    for text in texts:
        _has_none(text, (*PASSWORDS, base64.b64encode(b"user:" + password.encode()).decode()))


def _has_none(text: str, secrets: tuple[str, ...]) -> None:
    for secret in secrets:
        at = text.find(secret)
        assert at < 0, f"{secret} in: …{text[max(0, at - 300) : at + 100]}"


def test_ready_is_not_told(tmp_path: Path) -> None:
    """`ingest dev` prints the key it has made, which is what it is for, once; its log does not have it."""
    with Ingest("dev", "--port", "0", directory=tmp_path, env={"INGEST_LOG_LEVEL": "debug"}) as dev:
        dev.wait_for("Ctrl-C stops it")
        lines = [line for line in dev.text().splitlines() if line.startswith("{")]
        assert not any("asg_live_" in line and "asg_live_***" not in line for line in lines)
