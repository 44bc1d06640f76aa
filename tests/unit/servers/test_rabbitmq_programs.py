"""RabbitMQ's programs are taken from INGEST_TEST_RABBITMQ_BIN if it is set, else from PATH."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers import Unavailable
from tests.servers.rabbitmq_programs import VARIABLE, ctl_program, mapper_program, origin, server_program

NAMES = ("rabbitmq-server", "rabbitmqctl", "epmd")


def programs(directory: Path, *names: str) -> Path:
    """Create programs in a new directory; return it."""
    directory.mkdir()
    for name in names:
        (directory / name).touch(mode=0o755)
    return directory


@pytest.fixture
def on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only directory on PATH; it has the programs."""
    directory = programs(tmp_path / "path", *NAMES)
    monkeypatch.setenv("PATH", str(directory))
    monkeypatch.delenv(VARIABLE, raising=False)
    return directory


def test_programs_of_named_directory_are_used_instead_of_those_on_path(
    tmp_path: Path, on_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = programs(tmp_path / "named", *NAMES)
    monkeypatch.setenv(VARIABLE, str(named))
    assert [server_program(), ctl_program(), mapper_program()] == [str(named / name) for name in NAMES]
    assert origin() == "in INGEST_TEST_RABBITMQ_BIN"


def test_port_mapper_is_taken_from_path_if_named_directory_lacks_it(
    tmp_path: Path, on_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(programs(tmp_path / "named", *NAMES[:2])))
    assert mapper_program() == str(on_path / "epmd")


def test_programs_on_path_are_used_without_the_variable(on_path: Path) -> None:
    assert [server_program(), ctl_program(), mapper_program()] == [str(on_path / name) for name in NAMES]
    assert origin() == "on PATH"


def test_server_is_unavailable_if_path_lacks_it(on_path: Path) -> None:
    (on_path / "rabbitmq-server").unlink()
    with pytest.raises(Unavailable, match="rabbitmq-server is not on PATH"):
        server_program()


def test_run_ends_before_the_first_test_if_named_directory_lacks_programs(tmp_path: Path) -> None:
    directory = programs(tmp_path / "bin", "rabbitmqctl")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--collect-only", __file__]
    environment = {**os.environ, VARIABLE: str(directory)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    message = f"ERROR: {VARIABLE}={directory}: this directory has no rabbitmq-server that can be executed"
    assert message in done.stderr.splitlines()
