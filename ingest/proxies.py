"""Chooses the proxy for a URL from the environment, as httpx does, but with errors that name the variable.

httpx itself fails with an internal error on an IPv6 network in NO_PROXY, and on a SOCKS proxy without `httpx[socks]`.
The SDK has the same module, because it shares no code with the service.
"""

import ipaddress
import ssl
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any
from urllib.request import getproxies

import httpx

from ingest.domain.errors import ConfigurationError


def client_options(url: str, context: ssl.SSLContext | None = None) -> dict[str, Any]:
    """Return keyword arguments for a client of httpx that is used for `url` only.

    `context` is for https; by default, public authorities or those of SSL_CERT_FILE are trusted.

    Raises ConfigurationError, as `proxy_for`, and httpx.InvalidURL.
    """
    proxy = proxy_for(httpx.URL(url))
    # Without trust_env httpx leaves the variables alone; its context still reads SSL_CERT_FILE.
    return {"proxy": proxy, "trust_env": False, "verify": context or httpx.create_ssl_context()}


def proxy_for(url: httpx.URL, variables: Mapping[str, str] | None = None) -> httpx.URL | None:
    """Return the proxy through which `url` is reached; None if it is reached directly.

    Args:
        url: an http or https URL.
        variables: proxies by scheme, plus `all` and `no`, as `urllib.request.getproxies` returns them; None for those
            of the environment.

    Raises:
        ConfigurationError: the variable that applies has no usable proxy. The sentence does not show its value, which
            may contain a password.
    """
    variables = getproxies() if variables is None else variables
    scheme = url.scheme if variables.get(url.scheme) else "all"
    value = variables.get(scheme)
    if not value or _is_excluded(url, variables.get("no", "")):
        return None
    name = f"{scheme.upper()}_PROXY"
    try:
        proxy = httpx.URL(value if "://" in value else f"http://{value}")
    except httpx.InvalidURL:
        proxy = httpx.URL()
    if proxy.scheme not in ("http", "https", "socks5", "socks5h") or not proxy.host:
        raise ConfigurationError(
            f"{name} is not the URL of a proxy: set it to one like http://proxy.example:3128, or unset it, or add "
            f"{url.host} to NO_PROXY"
        )
    if proxy.scheme.startswith("socks") and find_spec("socksio") is None:
        raise ConfigurationError(
            f"{name} is a SOCKS proxy: run `pip install httpx[socks]`, or unset it, or add {url.host} to NO_PROXY"
        )
    return proxy


def _is_excluded(url: httpx.URL, no_proxy: str) -> bool:
    """Return whether an entry of NO_PROXY matches: `*`, a host or parent domain, an address or network, with a port."""
    for entry in filter(None, (part.strip().lower() for part in no_proxy.split(","))):
        scheme, _, rest = entry.rpartition("://")
        if scheme not in ("", "all", url.scheme):
            continue
        if rest == "*" or _in_network(url.host, rest):
            return True
        host, colon, port = rest.rpartition(":")
        if colon and port.isdigit():
            if int(port) != (url.port or {"http": 80, "https": 443}.get(url.scheme)):
                continue
            rest = host
        domain = rest.lstrip("*.")
        if _in_network(url.host, rest) or (domain and f".{url.host}".endswith(f".{domain}")):
            return True
    return False


def _in_network(host: str, network: str) -> bool:
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(network.strip("[]"), strict=False)
    except ValueError:  # one of them is a name
        return False
