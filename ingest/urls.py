"""URLs of the broker, the store and the management API, as the settings take them."""

import ipaddress
import re
from collections.abc import Set
from typing import Final
from urllib.parse import parse_qs

from pydantic import ValidationError
from pydantic_core import MultiHostUrl

from ingest.domain.errors import ConfigurationError

BROKER_EXAMPLE: Final = "amqp://user:password@host:5672,host2:5672/vhost"
STORE_EXAMPLE: Final = "aerospike://user:password@host:3000,host2:3000/namespace"
MANAGEMENT_EXAMPLE: Final = "http://user:password@host:15672"

_RESERVED: Final = re.compile(r"[/?#\[\]@\s]")
_ENCODE: Final = (
    "write / as %2F, ? as %3F, # as %23, [ as %5B, ] as %5D, @ as %40 and a space as %20 in the user and the password, "
    "and @ as %40 everywhere else"
)


def parse_multi_host_url(url: str, variable: str, example: str) -> MultiHostUrl:
    """Parse `scheme://user:password@host:port,host2:port2/path?query`.

    Args:
        url: the value of the setting.
        variable: the name of the setting, for the error.
        example: what the URL must look like, for the error.

    Raises:
        ConfigurationError: the URL is invalid. The message contains no part of the URL.
    """
    problem = ""
    # A reserved character in a password ends the authority too soon: what is before it would be taken for a host.
    if _RESERVED.search(url.partition("://")[2].rpartition("@")[0]):
        problem = _ENCODE
    else:
        try:
            parsed = MultiHostUrl(url)
        except ValidationError as error:
            details = error.errors(include_url=False, include_input=False)[0].get("ctx", {})
            problem = details.get("error", "invalid URL")
        else:
            if parsed.hosts():
                return parsed
            problem = "the host is missing"
    raise ConfigurationError(f"{variable}: {problem}; it must look like {example}")


def parse_options(query: str, known: Set[str], variable: str) -> dict[str, str]:
    """Return the options in the query of a URL.

    They decide how a connection is protected. So an option that is not in `known` is an error, and one that is given
    twice, too. `variable` is the name of the setting, for the error.

    Raises:
        ConfigurationError: the message contains names of options and no values.
    """
    values = parse_qs(query, keep_blank_values=True)
    if unknown := sorted(values.keys() - known):
        raise ConfigurationError(f"{variable} has unknown options {unknown}; known are {sorted(known)}")
    if repeated := [name for name in values if len(values[name]) > 1]:
        raise ConfigurationError(f"{variable} has the option {repeated[0]} twice: remove one")
    return {name: value for name, (value,) in values.items()}


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches a host name or address; an IPv6 address may have brackets."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"
