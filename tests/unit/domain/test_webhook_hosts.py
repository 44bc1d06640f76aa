"""Webhooks in private networks are refused."""

import pytest

from ingest.domain.webhook_hosts import private_host_problem


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST.",
        "a.localhost",
        "intranet",
        "hooks.internal",
        "printer.local",
        "127.0.0.1",
        "127.255.255.254:8443",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "[::1]",
        "[::]",
        "[::ffff:7f00:1]",
        "[::ffff:a9fe:a9fe]",
        "[64:ff9b::a9fe:a9fe]",
        "[2002:7f00:1::]",
        "[fe80::1]",
        "[fd00::1]",
        "[ff02::1]",
        "[2001:db8::1]",
    ],
)
def test_private_hosts_are_refused(host: str) -> None:
    problem = private_host_problem(f"https://{host}/hook")
    assert problem is not None
    assert problem.startswith("must have a public host: ")


@pytest.mark.parametrize(
    "host",
    [
        "example.com",
        "hooks.acme.example",
        "hooks.acme.example.:8443",
        "localhost.example.com",
        "93.184.216.34",
        "[2606:4700:4700::1111]",
        "[::ffff:5db8:d822]",
        "[64:ff9b::5db8:d822]",
    ],
)
def test_public_hosts_are_accepted(host: str) -> None:
    assert private_host_problem(f"https://{host}/hook") is None
