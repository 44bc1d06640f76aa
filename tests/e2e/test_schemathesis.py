"""schemathesis checks real processes against the OpenAPI document that they serve."""

import os
import subprocess
import sys
from pathlib import Path

from tests.e2e.processes import Ingest, wait_ready
from tests.e2e.schemathesis_hooks import WEBHOOK
from tests.fuzz.world import CUSTOMER, World
from tests.servers import AerospikeServer, RabbitServer
from tests.servers.process import free_ports

_HOOKS = Path(__file__).with_name("schemathesis_hooks.py")


def run_schemathesis(url: str, api_key: str, directory: Path, seconds: int) -> None:
    """Run the `schemathesis` command with all checks. Raise AssertionError with its report if a check fails."""
    command = [
        str(Path(sys.executable).with_name("schemathesis")),
        "run",
        f"{url}/openapi.json",
        *("--header", f"Authorization: Bearer {api_key}"),
        *("--checks", "all", "--phases", "examples,coverage,fuzzing"),
        *("--max-examples", "20", "--max-failures", "20", "--seed", "1", "--no-color"),
        "--generation-database=none",
    ]
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": "schemathesis_hooks", "PYTHONPATH": str(_HOOKS.parent)}
    done = subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, timeout=seconds, check=False
    )
    assert done.returncode == 0, done.stdout[-15000:] + done.stderr[-2000:]


def test_dev_answers_as_the_openapi_document_says(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with Ingest("dev", "--port", str(port), "--api-key", "k", "--webhook", WEBHOOK, directory=tmp_path) as dev:
        wait_ready(f"http://127.0.0.1:{port}")
        run_schemathesis(f"http://127.0.0.1:{port}", "k", tmp_path, 110)
        assert "Traceback" not in dev.text()


def test_shim_on_rabbitmq_and_aerospike_answers_as_the_openapi_document_says(
    rabbitmq: RabbitServer, aerospike: AerospikeServer
) -> None:
    with World(rabbitmq, aerospike) as world:
        world.ingest("webhook", "add", CUSTOMER, WEBHOOK)
        run_schemathesis(world.url, world.keys[CUSTOMER], world.directory, 110)
        assert world.defects() == []
