"""The image, as far as it can be checked without an engine: its file, its lock, a process run as it runs one."""

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
LINUX: dict[str, str] = {
    **{name: str(value) for name, value in default_environment().items()},
    "python_version": "3.11",
    "sys_platform": "linux",
    "platform_system": "Linux",
}


def locked(name: str) -> dict[str, str]:
    """Version by name of what a lock pins, each with at least one hash."""
    text = (DEPLOY / name).read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    found: dict[str, str] = {}
    for line in lines:
        match = re.fullmatch(
            r"(?P<name>\S+)==(?P<version>[^\s;]+)(?P<hashes>(\s+--hash=sha256:[0-9a-f]{64})+)\s*", line
        )
        assert match, f"not pinned by hash: {line}"
        found[canonicalize_name(match["name"])] = match["version"]
    return found


def unsatisfied(requirements: list[str], lock: dict[str, str]) -> list[str]:
    wanted = [each for each in map(Requirement, requirements) if each.marker is None or each.marker.evaluate(LINUX)]
    return [str(each) for each in wanted if not each.specifier.contains(lock.get(canonicalize_name(each.name), "0"))]


def test_the_lock_satisfies_the_project() -> None:
    """Every dependency of every extra, at a version that pyproject.toml allows."""
    project = PROJECT["project"]
    wanted = project["dependencies"] + [each for extra in project["optional-dependencies"].values() for each in extra]
    assert unsatisfied(wanted, locked("requirements.lock")) == [], "run scripts/lock"
    assert unsatisfied(PROJECT["build-system"]["requires"], locked("build.lock")) == [], "run scripts/lock"


def test_the_lock_is_complete() -> None:
    """What the locked packages need in turn is locked too: pip would refuse anything else."""
    lock = locked("requirements.lock")
    missing = []
    for name, version in lock.items():
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # of an extra that is not installed here
        if distribution.version == version:
            needed = [each for each in distribution.requires or [] if "extra ==" not in each]
            missing += [f"{name} needs {each}" for each in unsatisfied(needed, lock)]
    assert missing == []


def test_hadolint_has_nothing_to_say() -> None:
    """All its rules."""
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, DEPLOY / "Dockerfile"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_all_that_is_copied_is_in_the_context() -> None:
    """.dockerignore leaves in what the Dockerfile copies, and nothing else."""
    sources = set()
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        sources |= set(shlex.split(line)[:-1])
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert sources == allowed
    assert all((ROOT / source).exists() for source in sources)


def test_the_image_has_what_the_set_up_jobs_run() -> None:
    """Compose and Kubernetes name files under the image's /usr/share/ingest/rabbitmq."""
    (target,) = re.findall(r"^COPY deploy/rabbitmq (\S+)$", DOCKERFILE, re.MULTILINE)
    compose = (DEPLOY / "docker-compose.yml").read_text()
    kubernetes = (DEPLOY / "kubernetes/components/rabbitmq-users/users.yaml").read_text()
    for text in (compose, kubernetes):
        named = re.findall(rf"{target}/([\w.]+)", text)
        assert {"provision.py", "definitions.json", "users.json"} == set(named)
        assert all((DEPLOY / "rabbitmq" / name).exists() for name in named)


def test_the_image_is_small_in_rights() -> None:
    """Not root, and started in exec form so that SIGTERM arrives."""
    assert re.search(r"^USER 10001:10001$", DOCKERFILE, re.MULTILINE)
    for instruction in ("ENTRYPOINT", "CMD"):
        assert re.search(rf"^\s*{instruction} \[", DOCKERFILE, re.MULTILINE)


def may_unshare() -> bool:
    """Whether new namespaces are allowed here: root in a container often has none."""
    if os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("setpriv"):
        return False
    command = ["unshare", "--pid", "--fork", "--mount", "--mount-proc", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(command, capture_output=True, timeout=20).returncode == 0


@pytest.mark.skipif(not may_unshare(), reason="needs root, unshare, setpriv, and the right to make namespaces")
@pytest.mark.parametrize(("command", "processes"), [("serve", 2), ("work", 1)])
def test_it_runs_as_its_containers_do(
    aerospike: AerospikeServer, rabbitmq_url: str, tmp_path: Path, command: str, processes: int
) -> None:
    """As process 1, as user 10001 without capabilities, on a read-only file system with /tmp alone to write: it
    becomes healthy by the image's own HEALTHCHECK, and SIGTERM ends it with exit code 0.
    """
    port, metrics = free_ports(2)
    output = (tmp_path / "output").open("w+")
    # The checkout may lie where only root may look, so it is seen from /mnt in there.
    inside = f"""
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
    }
    process = subprocess.Popen(
        ["unshare", "--pid", "--fork", "--mount", "--mount-proc", "--kill-child", "sh", "-c", inside],
        env=environment,
        stdout=output,
        stderr=output,
    )
    try:
        wait_until(lambda: _healthy(metrics), f"ingest {command}: {(tmp_path / 'output').read_text()}", 30)
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
    """Runs the image's HEALTHCHECK."""
    match = re.search(r"HEALTHCHECK .*\\\n\s+CMD (\[.*\])", DOCKERFILE)
    assert match
    command = [part.replace("9464", str(port)) for part in json.loads(match[1])]
    return subprocess.run([sys.executable, *command[1:]], capture_output=True, timeout=10).returncode == 0


def _answers(port: int) -> bool:
    return httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
