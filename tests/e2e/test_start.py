"""What processes say when they start."""

import json
import time
from collections import Counter
from pathlib import Path

from tests.e2e.processes import Ingest, run_ingest
from tests.servers.process import wait_until

SERVERS = {"INGEST_BROKER_URL": "amqp://127.0.0.1:1/", "INGEST_STORE_URL": "aerospike://127.0.0.1:1/test"}


def test_worker_without_a_store_url_exits_with_2_before_it_rejects_anything(tmp_path: Path) -> None:
    done = run_ingest("work", env={"INGEST_BROKER_URL": "amqp://127.0.0.1:1/"}, directory=tmp_path)
    assert done.returncode == 2
    assert "INGEST_STORE_URL is not set" in done.stderr


def test_customer_is_not_added_to_a_file_that_no_worker_reads(tmp_path: Path) -> None:
    done = run_ingest("customer", "add", "acme", env={"INGEST_BROKER_URL": "amqp://h/"}, directory=tmp_path)
    assert done.returncode == 2
    assert not (tmp_path / ".ingest").exists()


def test_unknown_variable_is_logged_with_the_closest_setting(tmp_path: Path) -> None:
    with Ingest("work", directory=tmp_path, env=SERVERS | {"INGEST_PREFETHC": "5"}) as work:
        work.wait_for('"unknown_setting"')
        assert '"closest": "INGEST_PREFETCH"' in work.text()


def test_process_that_cannot_connect_logs_it_once_and_says_what_it_waits_for(tmp_path: Path) -> None:
    """Several processes without a metrics port. Each tries to connect about ten times in this time."""
    broker = "amqp://u:s3cret@127.0.0.1:1/"
    with Ingest("work", "--processes", "2", directory=tmp_path, env=SERVERS | {"INGEST_BROKER_URL": broker}) as work:
        wait_until(lambda: work.text().count('"store_unavailable"') == 2, "two lines about the store", 20)
        time.sleep(4)
        assert work.stop() == 0
        lines = [json.loads(line) for line in work.text().splitlines()]
        assert "s3cret" not in work.text()
    for process in ("0", "1"):
        own = [line for line in lines if line.get("process") == process]
        events = Counter(line["event"] for line in own)
        assert events == dict.fromkeys(
            ("broker_unavailable", "store_unavailable", "worker_started", "worker_stopped"), 1
        )
        by_event = {line["event"]: line for line in own}
        assert by_event["worker_started"]["waiting_for"] == "broker"
        assert by_event["broker_unavailable"]["setting"] == "INGEST_BROKER_URL"
        assert by_event["broker_unavailable"]["at"] == "127.0.0.1:1"
        assert "Errno 111" in by_event["broker_unavailable"]["error"]
        assert by_event["store_unavailable"]["setting"] == "INGEST_STORE_URL"
        assert "Failed to connect" in by_event["store_unavailable"]["error"]


def test_process_logs_once_that_it_is_ready(tmp_path: Path) -> None:
    with Ingest("dev", "--port", "0", directory=tmp_path) as dev:
        dev.wait_for('"event": "ready"')
        time.sleep(2.5)
        assert dev.text().count('"event": "ready"') == 1
        assert "waiting_for" not in dev.text()
