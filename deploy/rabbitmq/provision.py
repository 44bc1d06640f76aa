#!/usr/bin/env python3
"""Imports topology and users into RabbitMQ, with passwords that stand in files and nowhere else.

    RABBITMQ_ADMIN_URL=http://admin:password@host:15672 provision.py --passwords DIR [--vhost /] FILE ...

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
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx


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


def main() -> None:
    """Raises OSError, ValueError, httpx.HTTPError."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--passwords", required=True, type=Path, metavar="DIR")
    parser.add_argument("--vhost", default="/")
    arguments = parser.parse_args()
    url = urlsplit(os.environ.get("RABBITMQ_ADMIN_URL", ""))
    if not url.hostname or not url.username:
        raise ValueError("RABBITMQ_ADMIN_URL must look like http://user:password@host:15672")
    document = merged(arguments.files, arguments.vhost)
    for name in with_passwords(document, arguments.passwords):
        print(f"user {name} left out: {arguments.passwords} has no file of that name")
    response = httpx.post(
        f"{url.scheme}://{url.hostname}:{url.port or 15672}/api/definitions",
        json=document,
        auth=(unquote(url.username), unquote(url.password or "")),
        timeout=60,
    )
    if response.is_error:
        raise ValueError(f"RabbitMQ answers {response.status_code}: {response.text}")
    print("imported: " + ", ".join(f"{len(objects)} {section}" for section, objects in document.items()))


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError, httpx.HTTPError) as error:
        sys.exit(f"provision.py: {error}")
