"""Checks of the image without a container engine: Dockerfile, locks, and a process under the image's conditions."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from importlib import metadata
from itertools import chain
from pathlib import Path

import httpx
import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.deploy.files import DEPLOY, ROOT
from tests.servers import AerospikeServer
from tests.servers.process import free_ports, wait_until

DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
OLDEST_PYTHON = PROJECT["project"]["requires-python"].removeprefix(">=")
IMAGE_PYTHON = re.findall(r"^ARG BASE=python:(\d+\.\d+)-", DOCKERFILE, re.MULTILINE)[0]


def locked(name: str) -> dict[str, str]:
    """Return the version of each package in a lock file. Every line must pin one with at least one hash."""
    text = (DEPLOY / name).read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    versions: dict[str, str] = {}
    for line in lines:
        match = re.fullmatch(
            r"(?P<name>\S+)==(?P<version>[^\s;]+)(?P<hashes>(\s+--hash=sha256:[0-9a-f]{64})+)\s*", line
        )
        assert match, f"not pinned by hash: {line}"
        versions[canonicalize_name(match["name"])] = match["version"]
    return versions


def unsatisfied(requirements: list[str], lock: dict[str, str], python: str) -> list[str]:
    """Return the requirements on Linux with a version of Python that the locked versions do not meet."""
    environment: dict[str, str] = {
        **{name: str(value) for name, value in default_environment().items()},
        "python_version": python,
        "python_full_version": f"{python}.0",
        "implementation_version": f"{python}.0",
        "sys_platform": "linux",
        "platform_system": "Linux",
    }
    return [
        str(requirement)
        for requirement in map(Requirement, requirements)
        if requirement.marker is None or requirement.marker.evaluate(environment)
        if not requirement.specifier.contains(lock.get(canonicalize_name(requirement.name), "0"))
    ]


@pytest.mark.parametrize("python", [OLDEST_PYTHON, IMAGE_PYTHON])
def test_locks_satisfy_every_requirement_in_pyproject(python: str) -> None:
    project = PROJECT["project"]
    requirements = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    assert unsatisfied(requirements, locked("requirements.lock"), python) == [], "run scripts/lock"
    assert unsatisfied(PROJECT["build-system"]["requires"], locked("build.lock"), python) == [], "run scripts/lock"


@pytest.mark.parametrize("python", [OLDEST_PYTHON, IMAGE_PYTHON])
def test_lock_contains_the_dependencies_of_every_locked_package_installed_here(python: str) -> None:
    """pip refuses to install an unlocked dependency. Only packages installed in the locked version can be checked."""
    lock = locked("requirements.lock")
    missing: list[str] = []
    checked = 0
    for name, version in lock.items():
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        if distribution.version == version:
            checked += 1
            needed = [requirement for requirement in distribution.requires or [] if "extra ==" not in requirement]
            missing += [f"{name} needs {requirement}" for requirement in unsatisfied(needed, lock, python)]
    assert missing == []
    assert checked


def test_hadolint_accepts_the_dockerfile() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    completed = subprocess.run([hadolint, DEPLOY / "Dockerfile"], capture_output=True, text=True, timeout=60)
    assert completed.returncode == 0, completed.stdout + completed.stderr


def test_dockerfile_needs_no_frontend_from_a_registry() -> None:
    """`# syntax=` makes every build fetch an image, although the engine's own frontend understands the file."""
    assert "# syntax" not in DOCKERFILE


def test_build_context_contains_exactly_what_the_dockerfile_copies() -> None:
    sources = set()
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        sources |= set(shlex.split(line)[:-1])
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert sources == allowed
    assert all((ROOT / source).exists() for source in sources)


def test_image_contains_the_files_that_the_provisioning_jobs_run() -> None:
    (target,) = re.findall(r"^COPY deploy/rabbitmq (\S+)$", DOCKERFILE, re.MULTILINE)
    compose = (DEPLOY / "docker-compose.yml").read_text()
    kubernetes = (DEPLOY / "kubernetes/components/rabbitmq-users/users.yaml").read_text()
    for text in (compose, kubernetes):
        named = re.findall(rf"{target}/([\w.]+)", text)
        assert {"provision.py", "definitions.json", "users.json"} == set(named)
        assert all((DEPLOY / "rabbitmq" / name).exists() for name in named)


def test_image_runs_as_an_unprivileged_user_and_receives_sigterm() -> None:
    """The process gets the signal only in exec form; in shell form, the shell gets it."""
    assert re.search(r"^USER 10001:10001$", DOCKERFILE, re.MULTILINE)
    for instruction in ("ENTRYPOINT", "CMD"):
        assert re.search(rf"^\s*{instruction} \[", DOCKERFILE, re.MULTILINE)


def can_unshare() -> bool:
    """Return whether this process can create namespaces, which root in a container often cannot."""
    if os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("setpriv"):
        return False
    command = ["unshare", "--pid", "--fork", "--mount", "--mount-proc", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(command, capture_output=True, timeout=20).returncode == 0


@pytest.mark.skipif(not can_unshare(), reason="needs root, unshare, setpriv, and the permission to create namespaces")
@pytest.mark.parametrize(("command", "processes"), [("serve", 2), ("work", 1), ("console", 1)])
def test_process_becomes_healthy_and_stops_on_sigterm_under_the_conditions_of_the_image(
    aerospike: AerospikeServer, rabbitmq_url: str, tmp_path: Path, command: str, processes: int
) -> None:
    """It runs as process 1 and user 10001, without capabilities, on a file system that is read-only except /tmp."""
    port, metrics = free_ports(2)
    output = (tmp_path / "output").open("w+")
    # The checkout may be in a folder that only root can read, so the process sees it at /mnt.
    script = f"""
        set -e
        mount --make-rprivate /
        mount --bind {ROOT} /mnt && mount -t tmpfs -o size=64m tmpfs /tmp && mount -o remount,bind,ro /
        exec setpriv --reuid 10001 --regid 10001 --clear-groups --bounding-set=-all --inh-caps=-all --no-new-privs \
            {Path(sys.executable).resolve()} -m ingest {command}
    """
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"/mnt:/mnt/ingest/sdk:{':'.join(f'/mnt/{p.relative_to(ROOT)}' for p in _site_packages())}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "TMPDIR": "/tmp",
        "INGEST_BROKER_URL": rabbitmq_url,
        "INGEST_STORE_URL": aerospike.url,
        "INGEST_PORT": str(port),
        "INGEST_METRICS_PORT": str(metrics),
        "INGEST_WORKERS": str(processes),
        "INGEST_CONSOLE_HOST": "0.0.0.0",
        "INGEST_CONSOLE_PORT": str(port),
        "INGEST_CONSOLE_TOKEN": "correct horse battery",
    }
    process = subprocess.Popen(
        ["unshare", "--pid", "--fork", "--mount", "--mount-proc", "--kill-child", "sh", "-c", script],
        env=environment,
        stdout=output,
        stderr=output,
    )
    try:
        checked = port if command == "console" else metrics
        wait_until(lambda: _healthy(checked), f"ingest {command}: {(tmp_path / 'output').read_text()}", 30)
        if command == "serve":
            wait_until(lambda: _answers(port), "serving", 10)
        child = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])
        status = Path(f"/proc/{child}/status").read_text()
        assert re.search(r"^NSpid:.*\t1$", status, re.MULTILINE)
        assert re.search(r"^Uid:\t10001\t", status, re.MULTILINE)
        assert re.search(r"^CapBnd:\t0+$", status, re.MULTILINE)
        os.kill(child, signal.SIGTERM)
        assert process.wait(timeout=30) == 0, (tmp_path / "output").read_text()
    finally:
        process.kill()
        process.wait()
        output.close()


def _site_packages() -> list[Path]:
    return [path for path in map(Path, sys.path) if path.name == "site-packages" and path.is_relative_to(ROOT)]


def _healthy(port: int) -> bool:
    """Return whether the image's HEALTHCHECK succeeds."""
    match = re.search(r"HEALTHCHECK .*\\\n\s+CMD (\[.*\])", DOCKERFILE)
    assert match
    command = [part.replace("9464", str(port)) for part in json.loads(match[1])]
    return subprocess.run([sys.executable, *command[1:]], capture_output=True, timeout=10).returncode == 0


def _answers(port: int) -> bool:
    return httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
