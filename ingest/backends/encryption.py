"""The findings of `ingest doctor` about the encryption of connections."""

from collections.abc import Iterable

from ingest.domain.findings import Finding, ok, warning
from ingest.urls import is_loopback


def encryption_finding(
    area: str, variable: str, hosts: Iterable[str], *, encrypted: bool, exposed: str, do: str
) -> Finding:
    """Return whether a connection is encrypted, or does not leave this machine, or neither.

    Args:
        area: of the finding.
        variable: the setting with the address.
        hosts: the host names or IP addresses.
        encrypted: whether the connection uses TLS.
        exposed: what can be read in the network without TLS.
        do: how to encrypt it.
    """
    if encrypted:
        return ok(area, f"{variable}: TLS")
    if all(is_loopback(host) for host in hosts):
        return ok(area, f"{variable}: plain text, but only on this machine")
    return warning(area, f"{variable}: plain text, in which the network can read {exposed}", do)
