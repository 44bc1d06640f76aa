"""deploy/compose-passwords writes the passwords that docker-compose.yml needs, once."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.deploy.files import DEPLOY, ROOT, load_yaml


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A copy of the script and of what it reads."""
    for name in ("compose-passwords", "docker-compose.yml"):
        shutil.copy(DEPLOY / name, tmp_path)
    return tmp_path


def run(directory: Path) -> dict[str, str]:
    """Run the script; return the variables that Compose then reads."""
    subprocess.run([directory / "compose-passwords"], check=True, timeout=20, cwd="/")
    return dict(line.split("=", 1) for line in (directory / ".env").read_text().splitlines())


def test_script_writes_a_different_password_for_every_variable_of_the_compose_file(directory: Path) -> None:
    passwords = run(directory)
    assert set(passwords) == set(re.findall(r"\$\{(\w+)", (DEPLOY / "docker-compose.yml").read_text())) | {
        secret["environment"] for secret in load_yaml(DEPLOY / "docker-compose.yml")["secrets"].values()
    }
    assert len(set(passwords.values())) == len(passwords)
    assert all(re.fullmatch("[0-9a-f]{32}", password) for password in passwords.values())
    assert (directory / ".env").stat().st_mode & 0o777 == 0o600


def test_script_keeps_passwords_that_exist_because_volumes_contain_them(directory: Path) -> None:
    (directory / ".env").write_text("RABBITMQ_ADMIN_PASSWORD=mine")  # without a final newline
    (directory / ".env").chmod(0o644)
    passwords = run(directory)
    assert passwords["RABBITMQ_ADMIN_PASSWORD"] == "mine"
    assert (directory / ".env").stat().st_mode & 0o777 == 0o600
    assert run(directory) == passwords


def test_git_and_the_image_ignore_the_passwords() -> None:
    assert "deploy/.env" in (ROOT / ".gitignore").read_text().splitlines()
    assert not [
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if line in ("!deploy", "!deploy/.env")
    ]
