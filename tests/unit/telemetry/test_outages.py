"""The log has one line a minute about an outage, however many tries and calls fail."""

import re
from pathlib import Path
from typing import Any

import pytest
import structlog

from ingest.settings import load
from ingest.telemetry.outages import CONSEQUENCES, INTERVAL, MOST_REFUSALS, READY, REFUSED, UNAVAILABLE, OutageLines
from tests.support.fakes import Clock

SOURCE = Path(__file__).parents[3] / "ingest"


PLACE = {"setting": "INGEST_BROKER_URL", "at": "h:5672"}


class Log:
    """The lines that pass."""

    def __init__(self) -> None:
        self.clock = Clock(1000.0)
        self._processor = OutageLines({"broker": PLACE}, self.clock)
        self.lines: list[dict[str, Any]] = []

    def write(self, event: str, **fields: object) -> bool:
        """Log an event; return whether it passes."""
        try:
            self.lines.append(dict(self._processor(None, "warning", {"event": event, **fields})))
        except structlog.DropEvent:
            return False
        return True


@pytest.fixture
def log() -> Log:
    return Log()


def test_outage_has_one_line_a_minute_with_its_setting_and_the_number_of_tries(log: Log) -> None:
    for _ in range(180):
        log.write("broker_unavailable", error="refused")
        log.clock.now += 1
    assert log.lines == [
        {"event": "broker_unavailable", "error": "refused", **PLACE},
        {"event": "broker_unavailable", "error": "refused", **PLACE, "times": 60},
        {"event": "broker_unavailable", "error": "refused", **PLACE, "times": 60},
    ]


def test_consequences_of_an_outage_are_counted_in_its_next_line(log: Log) -> None:
    log.write("store_unavailable", error="no node")
    assert not log.write("attempt_failed")
    assert not log.write("attempt_failed")
    assert not log.write("settle_failed")
    log.clock.now += INTERVAL
    assert log.write("store_unavailable", error="no node")
    assert log.lines[-1]["left_out"] == {"attempt_failed": 2, "settle_failed": 1}
    assert log.lines[-1]["times"] == 1


def test_consequence_does_not_hide_the_cause_that_follows(log: Log) -> None:
    assert log.write("broker_connection_lost")
    assert log.write("broker_unavailable", error="refused")


def test_consequence_is_left_out_while_tries_fail_though_the_last_line_is_a_minute_old(log: Log) -> None:
    """Tries are seconds apart, so a consequence may come first in the next minute. It says less."""
    log.write("broker_unavailable")
    log.clock.now += INTERVAL - 2
    assert not log.write("broker_unavailable")
    log.clock.now += 2
    assert not log.write("broker_not_ready")
    assert log.write("broker_unavailable")
    assert log.lines[-1]["left_out"] == {"broker_not_ready": 1}


def test_trouble_of_single_calls_has_one_line_a_minute(log: Log) -> None:
    assert log.write("publish_unconfirmed")
    assert not log.write("publish_unconfirmed")
    log.clock.now += INTERVAL
    assert log.write("publish_unconfirmed")
    assert log.lines[-1]["times"] == 2


def test_outages_of_broker_and_store_do_not_hide_each_other(log: Log) -> None:
    assert log.write("broker_unavailable")
    assert log.write("store_unavailable")


def test_ready_passes_at_the_start_and_after_lines_about_an_outage(log: Log) -> None:
    """So a connection that is lost every second does not fill the log either."""
    assert log.write(READY)
    for _ in range(2 * int(INTERVAL)):
        log.write("broker_unavailable")
        log.write(READY)
        log.clock.now += 1
    assert [line["event"] for line in log.lines] == [READY, *["broker_unavailable", READY] * 2]


def test_refusals_of_a_customer_have_one_line_a_minute_and_hide_no_other_customer(log: Log) -> None:
    """They are no outage: a queue is full, or not bound."""
    assert log.write("publish_unconfirmed")
    assert log.write("publish_refused", cust_id="loud")
    for _ in range(59):
        log.clock.now += 1
        assert not log.write("publish_refused", cust_id="loud")
    assert log.write("publish_refused", cust_id="quiet")
    log.clock.now += 1
    assert log.write("publish_refused", cust_id="loud")
    assert log.lines[1:] == [
        {"event": "publish_refused", "cust_id": "loud"},
        {"event": "publish_refused", "cust_id": "quiet"},
        {"event": "publish_refused", "cust_id": "loud", "times": 60},
    ]
    assert log.write("broker_unavailable")


def test_refusals_have_a_limited_number_of_lines_a_minute(log: Log) -> None:
    """A full queue of events concerns every customer."""
    passed = [log.write("publish_refused", cust_id=f"c{number}") for number in range(100)]
    assert passed == [True] * MOST_REFUSALS + [False] * (100 - MOST_REFUSALS)
    log.clock.now += INTERVAL
    assert log.write("publish_refused", cust_id="c99")
    assert log.lines[-1]["left_out"] == {"publish_refused": 100 - MOST_REFUSALS}


def test_other_events_always_pass(log: Log) -> None:
    assert all(log.write("payload_mismatch", id=number) for number in range(100))
    assert log.lines[0] == {"event": "payload_mismatch", "id": 0}


def test_every_listed_event_is_logged_somewhere() -> None:
    text = "".join(path.read_text() for path in SOURCE.rglob("*.py") if path.name != "outages.py")
    for event in (*UNAVAILABLE, *CONSEQUENCES, READY, REFUSED):
        assert re.search(rf'"{event}"', text), event


def test_place_of_broker_and_store_names_the_setting_and_the_hosts_without_the_password() -> None:
    settings = load(broker_url="amqp://u:secret@h:5672,h2:5672/v", data_dir="/data")
    assert settings.dependencies == {
        "broker": {"setting": "INGEST_BROKER_URL", "at": "h:5672,h2:5672"},
        "store": {"setting": "INGEST_DATA_DIR", "at": "/data/store.db"},
    }
