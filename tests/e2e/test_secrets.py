"""Logs and errors do not contain secrets, even at log level debug and after failures."""

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

TOKENS = ("tokenInDataUrl", "tokenInCallback", "tokenInHook", "tokenInQuery", "s3cretUnknownKey", "cookieSecret")
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


def test_logs_and_errors_of_shim_and_worker_contain_no_secret(world: World, rabbitmq: RabbitServer) -> None:
    """Submissions are accepted, replayed, mismatched and rejected; then the connections to the broker are closed."""
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
    errors = "".join(answer.text for answer in answers if answer.is_error)
    # The name of an unknown field is not treated as a secret: the answer and the shim's debug log contain it.
    unknown_field = f"{DATA_URL} is not a known field"
    for text in (world.shim.text().replace(unknown_field, ""), world.worker.text(), errors.replace(unknown_field, "")):
        assert text
        _assert_contains_none(text, (*TOKENS, key, "password-of-"))


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
def test_errors_about_a_url_that_does_not_work_do_not_contain_its_password(
    variable: str, url: str, tmp_path: Path
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # the port is taken, but the socket does not listen
        password = PASSWORDS[0]
        env = {
            "INGEST_BROKER_URL": "amqp://127.0.0.1:1/",
            "INGEST_STORE_URL": "aerospike://127.0.0.1:1/test",
            variable: url.format(password=password, port=closed.getsockname()[1]),
            "INGEST_LOG_LEVEL": "debug",
            "INGEST_DATA_DIR": str(tmp_path / "data"),
        }
        texts = []
        for command in (["topology", "check"], ["customer", "list"], ["doctor"]):
            done = run_ingest(*command, env=env, directory=tmp_path)
            texts.append(done.stdout + done.stderr)
        with Ingest("work", directory=tmp_path, env=env) as work:
            with suppress(subprocess.TimeoutExpired):  # the process waits for its servers
                work.process.wait(2)
            texts.append(work.text())
    assert any(texts)
    for text in texts:
        _assert_contains_none(text, (*PASSWORDS, base64.b64encode(b"user:" + password.encode()).decode()))


def _assert_contains_none(text: str, secrets: tuple[str, ...]) -> None:
    for secret in secrets:
        position = text.find(secret)
        assert position < 0, f"{secret} in: …{text[max(0, position - 300) : position + 100]}"


def test_log_of_dev_does_not_contain_the_api_key_that_it_prints(tmp_path: Path) -> None:
    with Ingest("dev", "--port", "0", directory=tmp_path, env={"INGEST_LOG_LEVEL": "debug"}) as dev:
        dev.wait_for('"worker_started"')
        text = dev.text()
    key = (tmp_path / ".ingest" / "api_key").read_text().strip()
    assert f"API key: {key}" in text
    log = "\n".join(line for line in text.splitlines() if line.startswith("{"))
    assert '"worker_started"' in log
    assert key not in log
    assert "asg_live_" not in log.replace("asg_live_***", "")
