"""`ingest customer`, `key`, `webhook` on a store in a temporary directory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path


def ingest(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ingest", *arguments]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=30, check=False)


def test_a_customers_life(directory: Path) -> None:
    """Add, set, webhook, key, revoke; shown as it is."""
    added = ingest(directory, "customer", "add", "acme", "--quota", "10", "--json")
    assert json.loads(added.stdout)["monthly_quota"] == 10
    ingest(directory, "customer", "set", "acme", "--quota", "unlimited", "--retention", "12h", "--strict")
    ingest(directory, "webhook", "add", "acme", "https://a.example/h")
    made = json.loads(ingest(directory, "key", "create", "acme", "--json").stdout)
    assert set(made) == {"key_id", "api_key"}
    assert made["api_key"].startswith("asg_live_")
    assert ingest(directory, "key", "revoke", made["key_id"]).returncode == 0
    shown = json.loads(ingest(directory, "customer", "show", "acme", "--json").stdout)
    assert shown["keys"][0]["revoked"] is True
    assert {name: shown[name] for name in ("monthly_quota", "retention", "strict", "webhooks", "used_this_month")} == {
        "monthly_quota": "unlimited",
        "retention": 43_200,
        "strict": True,
        "webhooks": ["https://a.example/h"],
        "used_this_month": 0,
    }
    assert "cust_id=acme" in ingest(directory, "customer", "list").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("customer", "add", "a b"), "is not a customer id"),
        (("customer", "show", "nobody"), "there is no customer nobody"),
        (("customer", "add", "x", "--quota", "many"), "--quota must be"),
        (("customer", "add", "x", "--retention", "7"), "--retention must be"),
        (("webhook", "add", "x", "http://a.example"), "must be an https URL"),
        (("key", "revoke", "key_0"), "there is no key"),
        (("serve",), "needs RabbitMQ"),
        (("work",), "needs RabbitMQ"),
        (("topology", "check"), "needs RabbitMQ"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(directory: Path, arguments: tuple[str, ...], message: str) -> None:
    """No traceback; the line says what to change."""
    done = ingest(directory, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
