"""What `provision.py` says if RabbitMQ refuses the definitions or cannot be reached."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.deploy.provisioning import RABBITMQ
from tests.support.served import served

ADMIN_PASSWORD = "S3cret of admin"
USERS = {"users": [{"name": "acme", "password_hash": "", "tags": []}]}


class _Refusing(BaseHTTPRequestHandler):
    """Answers with the status and the text of the server, in which `{hash}` stands for the hash that was sent."""

    server: "_Server"

    def do_POST(self) -> None:
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body = self.server.answer.replace("{hash}", sent["users"][0]["password_hash"]).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


class _Server(ThreadingHTTPServer):
    status = 400
    answer = ""


@contextmanager
def refusing_server(answer: str, status: int) -> Iterator[str]:
    """Serve in a thread; yield host:port."""
    server = _Server(("127.0.0.1", 0), _Refusing)
    server.status, server.answer = status, answer
    with served(server):
        yield f"127.0.0.1:{server.server_port}"


def error_of(directory: Path, url: str) -> str:
    """Run `provision.py` for one user; return its error, which must have one line."""
    (directory / "acme").write_text("password of acme\n")
    users = directory / "users.json"
    users.write_text(json.dumps(USERS))
    completed = subprocess.run(
        [sys.executable, str(RABBITMQ / "provision.py"), "--passwords", str(directory), str(users)],
        env={**os.environ, "RABBITMQ_ADMIN_URL": url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert completed.returncode == 1
    (line,) = completed.stderr.splitlines()
    return line


def refusal_of(directory: Path, answer: str, status: int = 400) -> str:
    with refusing_server(answer, status) as address:
        return error_of(directory, f"http://admin:{ADMIN_PASSWORD.replace(' ', '%20')}@{address}")


def test_refusal_shows_the_status_and_the_reason(tmp_path: Path) -> None:
    answer = json.dumps({"error": "bad_request", "reason": "no exchange 'asg.submissions' in vhost '/'"})
    assert refusal_of(tmp_path, answer) == (
        "provision.py: RabbitMQ answers 400: no exchange 'asg.submissions' in vhost '/'"
    )


@pytest.mark.parametrize("answer", ["", "{}", "[1]", '{"reason": ""}'])
def test_refusal_without_a_reason_says_so(tmp_path: Path, answer: str) -> None:
    assert refusal_of(tmp_path, answer) == "provision.py: RabbitMQ answers 400: no reason given"


def test_redirection_is_an_error(tmp_path: Path) -> None:
    """Nothing was imported."""
    assert refusal_of(tmp_path, "", 302) == "provision.py: RabbitMQ answers 302: no reason given"


@pytest.mark.parametrize("wrapped", [True, False])
def test_refusal_is_one_short_line_that_a_terminal_can_show(tmp_path: Path, wrapped: bool) -> None:
    reason = "bad\x1b[2J\r\n\u202ename " + "x" * 5000
    line = refusal_of(tmp_path, json.dumps({"reason": reason}) if wrapped else reason)
    assert line.isprintable()
    assert r"bad\x1b[2J\r\n\u202ename xxx" in line
    assert len(line) < 300


@pytest.mark.parametrize("wrapped", [True, False])
def test_refusal_shows_no_password_and_no_hash(tmp_path: Path, wrapped: bool) -> None:
    reason = f'user #{{<<"password_hash">> => <<"{{hash}}">>}} {ADMIN_PASSWORD} is invalid'
    line = refusal_of(tmp_path, json.dumps({"reason": reason}) if wrapped else reason)
    assert line.endswith('user #{<<"password_hash">> => <<"***">>} *** is invalid')


@pytest.mark.parametrize(
    ("address", "base"),
    [
        ("http://admin:pw@rabbitmq.invalid", "http://rabbitmq.invalid:15672"),
        ("https://admin:pw@rabbitmq.invalid", "https://rabbitmq.invalid:15671"),
        ("https://admin:pw@rabbitmq.invalid:443/", "https://rabbitmq.invalid:443"),
        ("http://admin:pw@[::1]:1", "http://[::1]:1"),
    ],
)
def test_unreachable_server_is_named_with_the_port_of_its_scheme(tmp_path: Path, address: str, base: str) -> None:
    line = error_of(tmp_path, address)
    assert line.startswith(f"provision.py: the management API at {base} is unreachable: ")


@pytest.mark.parametrize(
    "url", ["", "admin:pw@host", "ftp://admin:S3cret@host:1", "http://host", "http://a:S3cret@h:x"]
)
def test_invalid_url_is_refused_without_showing_it(tmp_path: Path, url: str) -> None:
    line = error_of(tmp_path, url)
    assert "RABBITMQ_ADMIN_URL must look like http://user:password@host:15672" in line
    assert "S3cret" not in line
