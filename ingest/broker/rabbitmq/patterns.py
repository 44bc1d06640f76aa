"""The patterns in RabbitMQ's permissions: regular expressions, which match anywhere in a name."""

import re
from typing import Final

NOTHING: Final = "^$"


def only(*names: str) -> str:
    """Return the pattern that matches these names, or nothing without names."""
    literal = "|".join(name.replace(".", "[.]") for name in names)
    return f"^({literal})$" if len(names) > 1 else f"^{literal}$"


def may(pattern: str, name: str) -> bool:
    """Return whether a pattern allows a name. One that Python cannot compile is treated as allowing everything."""
    try:
        # Before Python 3.14, the end is `\Z`; Erlang's is `\z`.
        return bool(pattern) and re.search(pattern.replace(r"\z", r"\Z"), name) is not None
    except re.error:
        return True
