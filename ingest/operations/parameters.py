"""Ages and rates as people write them, on the command line and in forms."""

import re
from typing import Final

from ingest.domain.errors import ConfigurationError

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_LONGEST: Final = 3650 * 86_400


def seconds(text: str, option: str) -> int:
    """Parse a time such as 90s, 12h or 7d; return seconds. Raises ConfigurationError, which names `option`."""
    match = re.fullmatch(r"(\d{1,9})([smhd])", text)
    value = int(match[1]) * _UNITS[match[2]] if match else 0
    if not 1 <= value <= _LONGEST:
        raise ConfigurationError(f"{option} must be a time such as 90s, 12h or 7d, at most 3650d; it is {text!r}")
    return value


def rate(text: str, option: str) -> float:
    """Parse a rate such as 50/s; return messages per second. Raises ConfigurationError, which names `option`."""
    match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)(?:/s)?", text)
    if match is None or not float(match[1]):
        raise ConfigurationError(f"{option} must be a number per second, such as 50/s; it is {text!r}")
    return float(match[1])
