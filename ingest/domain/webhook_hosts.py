"""Which hosts a webhook may have: those that everybody can reach.

The service that delivers webhooks is in a private network. A webhook with a private address would let a customer
send requests into it (server-side request forgery).
"""

import ipaddress
from typing import Final
from urllib.parse import urlsplit

_PRIVATE_NAMES: Final = (".localhost", ".local", ".internal", ".home.arpa", ".onion", ".test", ".invalid")
"""RFC 6761, 6762, 7686, 8375, and ICANN's reservation of `.internal`. `.example` is reserved, too, but harmless."""


def private_host_problem(url: str) -> str | None:
    """Return what is wrong with the host of a valid URL if it is private or loopback; None if it is public.

    A public name may still resolve to a private address, so the sender of the requests must check the address, too.
    """
    host = (urlsplit(url).hostname or "").removesuffix(".").lower()
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return _name_problem(host)
    if all(part.is_global and not part.is_multicast for part in _addresses(address)):
        return None
    return f"must have a public host: {host} is a private, loopback or reserved address"


def _name_problem(host: str) -> str | None:
    if "." in host and not host.endswith(_PRIVATE_NAMES):
        return None
    return f"must have a public host: {host} is a name for private networks"


def _addresses(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """Return the address and the IPv4 address in it, to which a gateway may forward."""
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    if address.ipv4_mapped:
        return [address.ipv4_mapped]
    found: list[ipaddress.IPv4Address | ipaddress.IPv6Address] = [address]
    if address in ipaddress.IPv6Network("64:ff9b::/96"):  # RFC 6052; it is global itself
        return [ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)]
    if address.sixtofour:
        found.append(address.sixtofour)
    if address.teredo:
        found.append(address.teredo[1])
    return found
