"""What `ingest doctor` says about the encryption of each connection. Nothing listens at these addresses."""

from pathlib import Path
from typing import Any

import pytest

from ingest import settings
from ingest.domain.findings import Finding, Severity
from ingest.operations.checks import all_findings

TLS, LOCAL, PLAIN = "TLS", "plain text, but only on this machine", "plain text"
CLOSED = "127.0.0.1:1"
AWAY = "host.invalid:1"


async def findings(**values: Any) -> dict[str, Finding]:
    """Return the findings about encryption by variable."""
    current = settings.load(**({"broker_url": f"amqp://{CLOSED}/", "store_url": f"aerospike://{CLOSED}/test"} | values))
    return {
        finding.what.partition(": ")[0]: finding
        for finding in await all_findings(current)
        if finding.what.startswith(tuple(f"INGEST_{name}_URL: {TLS}" for name in ("BROKER", "MANAGEMENT", "STORE")))
        or ": plain text" in finding.what
    }


@pytest.mark.parametrize(
    ("name", "url", "state"),
    [
        ("broker_url", f"amqps://u:S3cretPw@{CLOSED}/", TLS),
        ("broker_url", f"amqp://u:S3cretPw@{CLOSED},[::1]:1,127.0.0.2:1,localhost/", LOCAL),
        ("broker_url", f"amqp://u:S3cretPw@{CLOSED},{AWAY}/", PLAIN),
        ("management_url", f"https://u:S3cretPw@{AWAY}", TLS),
        ("management_url", f"http://u:S3cretPw@{CLOSED}", LOCAL),
        ("management_url", f"http://u:S3cretPw@{AWAY}", PLAIN),
        ("store_url", f"aerospike://u:S3cretPw@{CLOSED}/test?tls=true", TLS),
        ("store_url", f"aerospike://u:S3cretPw@{CLOSED}/test?tls=false", LOCAL),
        ("store_url", f"aerospike://u:S3cretPw@{CLOSED},{AWAY}/test", PLAIN),
    ],
)
async def test_doctor_says_whether_a_connection_is_encrypted(name: str, url: str, state: str) -> None:
    variable = f"INGEST_{name.upper()}"
    finding = (await findings(**{name: url}))[variable]
    assert finding.area == ("store" if name == "store_url" else "broker")
    assert finding.what.startswith(f"{variable}: {state}")
    assert "S3cretPw" not in finding.what
    if state is PLAIN:
        assert finding.severity is Severity.WARNING
        assert {"broker_url": "amqps://", "management_url": "https://", "store_url": "tls=true"}[name] in finding.do
    else:
        assert (finding.severity, finding.do) == (Severity.OK, "")


async def test_connection_that_does_not_exist_is_not_listed(tmp_path: Path) -> None:
    """The management API is not set, or the files of `ingest dev` are used."""
    assert set(await findings()) == {"INGEST_BROKER_URL", "INGEST_STORE_URL"}
    assert await findings(broker_url="", store_url="", data_dir=tmp_path) == {}
