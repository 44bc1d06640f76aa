"""A virtual host that `deploy/rabbitmq/provision.py` has provisioned with the shipped users."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from tests.deploy.files import DEPLOY
from tests.servers import RabbitServer

RABBITMQ: Final = DEPLOY / "rabbitmq"
USERS: Final = ("ingest", "operator", "monitoring", "consensus", "webhooks", "acme")


def password_of(user: str) -> str:
    """Return the password that `provision` sets."""
    return f"password of {user}"


@contextmanager
def provision(rabbitmq: RabbitServer, passwords: Path) -> Iterator[str]:
    """Provision a new virtual host, and delete it and the users at the end.

    Args:
        rabbitmq: the broker.
        passwords: an empty directory for the files with passwords.

    Yields:
        `host:port/vhost`
    """
    for user in USERS:
        (passwords / user).write_text(f"{password_of(user)}\n")
    url = rabbitmq.new_vhost()
    completed = run_provision(rabbitmq, passwords, urlsplit(url).path[1:])
    assert completed.returncode == 0, completed.stderr
    yield url.partition("@")[2]
    for user in USERS:
        rabbitmq.api("DELETE", f"users/{user}")
    rabbitmq.drop_vhost(url)


def run_provision(rabbitmq: RabbitServer, passwords: Path, vhost: str, *more: Path) -> subprocess.CompletedProcess[str]:
    """Run `provision.py` with the shipped definitions and users, and with `more` files."""
    admin = urlsplit(rabbitmq.url)
    api = urlsplit(rabbitmq.management_url)
    files = [str(file) for file in (RABBITMQ / "definitions.json", RABBITMQ / "users.json", *more)]
    return subprocess.run(
        [sys.executable, str(RABBITMQ / "provision.py"), "--passwords", str(passwords), "--vhost", vhost, *files],
        env={**os.environ, "RABBITMQ_ADMIN_URL": f"{api.scheme}://{admin.username}:{admin.password}@{api.netloc}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
