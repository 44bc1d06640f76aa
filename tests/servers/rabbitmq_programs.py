"""RabbitMQ's programs: those in the directory that INGEST_TEST_RABBITMQ_BIN names, else those on PATH."""

import os
import shutil
from pathlib import Path
from typing import Final

from tests.servers.process import Unavailable

VARIABLE: Final = "INGEST_TEST_RABBITMQ_BIN"
_NEEDED: Final = ("rabbitmq-server", "rabbitmqctl")
_DEBIAN: Final = "/usr/sbin/rabbitmq-server"
_SBIN: Final = "usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmq-server"


def named_directory() -> Path | None:
    """Return the directory that INGEST_TEST_RABBITMQ_BIN names; None if the variable is not set.

    Raises:
        ValueError: it is not a directory with RabbitMQ's programs.
    """
    value = os.environ.get(VARIABLE)
    if not value:
        return None
    if missing := [name for name in _NEEDED if shutil.which(name, path=value) is None]:
        raise ValueError(f"{VARIABLE}={value}: this directory has no {' and no '.join(missing)} that can be executed")
    return Path(value).absolute()


def server_program() -> str:
    """Return the path of rabbitmq-server. Raises Unavailable, and ValueError as `named_directory` does."""
    directory = named_directory()
    program = shutil.which("rabbitmq-server", path=directory)
    if program is None:
        raise Unavailable("rabbitmq-server is not on PATH")
    # Debian's /usr/sbin/rabbitmq-server switches users; the script that it calls does not.
    scripts = sorted(Path("/").glob(_SBIN)) if program == _DEBIAN else []
    return str(scripts[-1] if scripts else program)


def ctl_program() -> str:
    """Return the path of rabbitmqctl. Raises as `server_program` does."""
    return str(Path(server_program()).with_name("rabbitmqctl"))


def mapper_program() -> str | None:
    """Return the path of epmd, from PATH if the named directory lacks it; None if there is none."""
    directory = named_directory()
    return (directory and shutil.which("epmd", path=directory)) or shutil.which("epmd")


def origin() -> str:
    """Return where the programs are, for people."""
    return f"in {VARIABLE}" if os.environ.get(VARIABLE) else "on PATH"
