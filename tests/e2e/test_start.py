"""What `ingest work` says when it starts."""

from pathlib import Path

from tests.e2e.processes import Ingest, run_ingest

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
