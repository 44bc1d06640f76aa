#!/usr/bin/env python3
"""Imports topology and users into RabbitMQ, with passwords from files.

    RABBITMQ_ADMIN_URL=http[s]://admin:password@host:15672 provision.py --passwords DIR [--vhost /] FILE ...

The default port is 15672, for https 15671.

FILE is a RabbitMQ definitions file (definitions.json, users.json). A user whose password_hash is empty gets the
password in DIR/<user name>; one without such a file is left out, permissions and all, and that is said. Running it
again changes nothing but the passwords whose files have changed. Exit code 1 and one line on standard error if not all
could be done.
"""

import argparse
import base64
import hashlib
import json
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import unquote, urlsplit

import httpx

_PORTS: Final = {"http": 15672, "https": 15671}
_LONGEST_REASON: Final = 200


class Server(NamedTuple):
    """RabbitMQ's management API and its administrator."""

    base: str
    user: str
    password: str


def server_at(url: str) -> Server:
    """Split a URL. Raises ValueError, which does not show it."""
    try:
        parts = urlsplit(url)
        default_port = _PORTS[parts.scheme]
        port = parts.port or default_port
    except (KeyError, ValueError):
        parts, port = urlsplit(""), 0
    if not parts.hostname or not parts.username:
        raise ValueError("RABBITMQ_ADMIN_URL must look like http://user:password@host:15672")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return Server(f"{parts.scheme}://{host}:{port}", unquote(parts.username), unquote(parts.password or ""))


def password_hash(password: str, salt: bytes) -> str:
    """RabbitMQ's salted SHA-256; `salt` is 4 bytes."""
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def merged(files: Iterable[Path], vhost: str) -> dict[str, list[Any]]:
    """Merge several definitions documents into one, for one virtual host. Raises OSError, ValueError."""
    document: dict[str, list[Any]] = {}
    for file in files:
        for section, definitions in json.loads(file.read_text()).items():
            document.setdefault(section, []).extend(
                {**definition, "vhost": vhost} if "vhost" in definition else definition for definition in definitions
            )
    return document


def with_passwords(document: dict[str, list[Any]], passwords: Path) -> list[str]:
    """Fill in password hashes; returns the names of the users that were left out. Raises OSError."""
    has_hash = {}
    for user in document.get("users", []):
        file = passwords / user["name"]
        if not user["password_hash"] and file.is_file():
            password = file.read_text().rstrip("\r\n")
            if not password:
                raise ValueError(f"{file} is empty: it must hold the password of user {user['name']}")
            user["password_hash"] = password_hash(password, os.urandom(4))
        has_hash[user["name"]] = bool(user["password_hash"])
    for section, field in (("users", "name"), ("permissions", "user"), ("topic_permissions", "user")):
        if section in document:
            document[section] = [entry for entry in document[section] if has_hash.get(entry[field], True)]
    return [name for name, present in has_hash.items() if not present]


def reason_in(answer: str, secrets: Iterable[str]) -> str:
    """Return the reason in an error's body, on one line: short, printable, without the secrets."""
    reason = answer
    with suppress(ValueError, RecursionError):
        fields = json.loads(answer)
        reason = str(fields.get("reason", "")) if isinstance(fields, dict) else ""
    for secret in filter(None, secrets):
        reason = reason.replace(secret, "***")
    reason = "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in reason
    )
    reason = f"{reason[:_LONGEST_REASON]}…" if len(reason) > _LONGEST_REASON else reason
    return reason or "no reason given"


def main() -> None:
    """Raises OSError, ValueError."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--passwords", required=True, type=Path, metavar="DIR")
    parser.add_argument("--vhost", default="/")
    arguments = parser.parse_args()
    server = server_at(os.environ.get("RABBITMQ_ADMIN_URL", ""))
    document = merged(arguments.files, arguments.vhost)
    for name in with_passwords(document, arguments.passwords):
        print(f"user {name} left out: {arguments.passwords} has no file of that name")
    try:
        response = httpx.post(
            f"{server.base}/api/definitions", json=document, auth=(server.user, server.password), timeout=60
        )
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ValueError(f"the management API at {server.base} is unreachable: {error or repr(error)}") from error
    if not response.is_success:
        secrets = [server.password, *(user["password_hash"] for user in document.get("users", []))]
        raise ValueError(f"RabbitMQ answers {response.status_code}: {reason_in(response.text, secrets)}")
    print("imported: " + ", ".join(f"{len(objects)} {section}" for section, objects in document.items()))


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"provision.py: {error}")
