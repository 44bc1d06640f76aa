"""The commands `ingest customer`, `key` and `webhook` on a store in a temporary directory."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest


def ingest(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ingest", *arguments]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=30, check=False)


def test_customer_show_prints_what_the_other_commands_changed(tmp_path: Path) -> None:
    added = ingest(tmp_path, "customer", "add", "acme", "--quota", "10", "--json")
    assert json.loads(added.stdout)["monthly_quota"] == 10
    ingest(tmp_path, "customer", "set", "acme", "--quota", "unlimited", "--retention", "12h", "--strict")
    ingest(tmp_path, "customer", "set", "acme", "--rate", "50/s")
    ingest(tmp_path, "webhook", "add", "acme", "https://a.example/h")
    api_key = json.loads(ingest(tmp_path, "key", "create", "acme", "--json").stdout)
    assert set(api_key) == {"key_id", "api_key"}
    assert api_key["api_key"].startswith("asg_live_")
    assert ingest(tmp_path, "key", "revoke", api_key["key_id"]).returncode == 0
    customer = json.loads(ingest(tmp_path, "customer", "show", "acme", "--json").stdout)
    assert customer["keys"][0]["revoked"] is True
    settings = ("monthly_quota", "rate", "weight", "retention", "strict", "webhooks", "used_this_month")
    assert {name: customer[name] for name in settings} == {
        "monthly_quota": "unlimited",
        "rate": "50/s",
        "weight": 1.0,
        "retention": 43_200,
        "strict": True,
        "webhooks": ["https://a.example/h"],
        "used_this_month": 0,
    }
    ingest(tmp_path, "customer", "add", "other-customer", "--quota", "100000", "--disabled", "--weight", ".5")
    assert ingest(tmp_path, "customer", "list").stdout.splitlines() == [
        "cust id         monthly quota  rate  weight  retention  strict  disabled",
        "acme            unlimited      50/s  1       12h        yes     no",
        "other-customer  100,000        none  0.5     7d         no      yes",
    ]


def test_customer_list_says_how_to_add_the_first_customer(tmp_path: Path) -> None:
    assert ingest(tmp_path, "customer", "list").stdout == "no customers: add one with `ingest customer add CUST`\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("customer", "add", "a b"), "is not a customer id"),
        (("customer", "show", "unknown"), "there is no customer unknown"),
        (("customer", "add", "x", "--quota", "many"), "--quota must be"),
        (("customer", "add", "x", "--retention", "7"), "--retention must be"),
        (("customer", "add", "x", "--retention", "59s"), "--retention must be at least 60s, twice INGEST_LEASE"),
        (("customer", "add", "x", "--rate", "50"), "--rate must be a number per second or minute, such as 50/s"),
        (("customer", "add", "x", "--rate", "0/s"), "--rate must be a number per second or minute, such as 50/s"),
        (("customer", "add", "x", "--weight", "nan"), "--weight must be a number from 0.01 to 100, it is 'nan'"),
        (("customer", "add", "x", "--weight", "0"), "--weight must be a number from 0.01 to 100, it is '0'"),
        (("customer", "add", "x", "--weight", "much"), "--weight must be a number from 0.01 to 100, it is 'much'"),
        (("webhook", "add", "x", "http://a.example"), "it must be an https URL"),
        (("webhook", "add", "x", "https://169.254.169.254/"), "169.254.169.254 is a private, loopback or reserved"),
        (("webhook", "add", "x", "https://münchen.de/"), "write xn--mnchen-3ya.de for münchen.de"),
        (("key", "revoke", "key_0"), "there is no key"),
        (("key", "create", "x", "--name", "a" * 65), "--name must have at most 64 printable characters"),
        (("key", "create", "x", "--name", "a\x1b[1m"), "--name must have at most 64 printable characters"),
        (("dlq", "list", "--reason", "quota"), "unknown reason 'quota'; known are malformed, invalid,"),
        (("dlq", "redrive", "--reason", "invalid", "--reason", "exipred"), "unknown reason 'exipred'"),
        (("serve",), "needs RabbitMQ"),
        (("work",), "needs RabbitMQ"),
        (("topology", "check"), "needs RabbitMQ"),
    ],
)
def test_invalid_command_exits_with_code_2_and_prints_one_line(
    tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    process = ingest(tmp_path, *arguments)
    assert process.returncode == 2
    assert message in process.stderr
    assert len(process.stderr.splitlines()) == 1


def test_customer_show_is_readable_text(tmp_path: Path) -> None:
    ingest(tmp_path, "customer", "add", "acme", "--quota", "100000")
    key_id = json.loads(ingest(tmp_path, "key", "create", "acme", "--json").stdout)["key_id"]
    shown = ingest(tmp_path, "customer", "show", "acme").stdout
    assert "monthly quota    100,000" in shown
    assert "rate             none" in shown
    assert "retention        7d" in shown
    assert "strict           no" in shown
    assert "webhooks         none" in shown
    assert re.search(rf"{key_id}, created 2.+Z, no use recorded\n", shown)
    assert not any(literal in shown for literal in ("{", "True", "False", "None"))


def test_customer_is_disabled_until_it_is_enabled_and_other_changes_keep_that(tmp_path: Path) -> None:
    ingest(tmp_path, "customer", "add", "acme")
    for change, disabled in (("--disabled", True), ("--strict", True), ("--enabled", False)):
        ingest(tmp_path, "customer", "set", "acme", change)
        assert json.loads(ingest(tmp_path, "customer", "show", "acme", "--json").stdout)["disabled"] is disabled


def test_customer_has_a_rate_until_it_is_none_and_other_changes_keep_it(tmp_path: Path) -> None:
    added = ingest(tmp_path, "customer", "add", "acme", "--rate", "600/m", "--json")
    assert json.loads(added.stdout)["rate"] == "600/m"
    for change, rate in ((("--strict",), "600/m"), (("--rate", "5/s"), "5/s"), (("--rate", "none"), "none")):
        ingest(tmp_path, "customer", "set", "acme", *change)
        assert json.loads(ingest(tmp_path, "customer", "show", "acme", "--json").stdout)["rate"] == rate


def test_key_has_a_name(tmp_path: Path) -> None:
    ingest(tmp_path, "customer", "add", "acme")
    created = json.loads(ingest(tmp_path, "key", "create", "acme", "--name", "import job", "--json").stdout)
    shown = json.loads(ingest(tmp_path, "customer", "show", "acme", "--json").stdout)
    (key,) = shown["keys"]
    assert (key["key_id"], key["name"], key["last_used_at"]) == (created["key_id"], "import job", None)
    assert f"{key['key_id']} (import job), created" in ingest(tmp_path, "customer", "show", "acme").stdout


def test_removing_an_unregistered_webhook_says_so_and_names_the_registered_ones(tmp_path: Path) -> None:
    ingest(tmp_path, "customer", "add", "acme")
    ingest(tmp_path, "webhook", "add", "acme", "https://a.example/h")
    process = ingest(tmp_path, "webhook", "remove", "acme", "https://a.example/h/")
    assert process.returncode == 2
    assert "https://a.example/h/ is not a webhook of acme; registered: https://a.example/h" in process.stderr
    assert ingest(tmp_path, "webhook", "remove", "acme", "https://a.example/h").returncode == 0


def test_webhook_with_a_private_host_needs_an_option(tmp_path: Path) -> None:
    ingest(tmp_path, "customer", "add", "acme")
    refused = ingest(tmp_path, "webhook", "add", "acme", "https://hooks.internal/h")
    assert refused.returncode == 2
    assert "--allow-private registers it anyway" in refused.stderr
    allowed = ingest(tmp_path, "webhook", "add", "acme", "https://hooks.internal/h", "--allow-private", "--json")
    assert "https://hooks.internal/h" in allowed.stdout
