"""The two distributions: `asg-ingest` (the service) and `asg-gateway` (the SDK)."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.deploy.files import ROOT

SDK = ROOT / "ingest/sdk"


def build_wheel(project: Path, directory: Path) -> zipfile.ZipFile:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)]
    completed = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=60)
    assert completed.returncode == 0, completed.stderr
    (wheel,) = directory.glob("*.whl")
    return zipfile.ZipFile(wheel)


def packages(wheel: zipfile.ZipFile) -> set[str]:
    return {name.partition("/")[0] for name in wheel.namelist() if ".dist-info/" not in name}


def commands(wheel: zipfile.ZipFile) -> set[str]:
    (entry_points,) = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    lines = wheel.read(entry_points).decode().splitlines()
    return {line.partition("=")[0].strip() for line in lines if "=" in line}


def test_sdk_wheel_contains_neither_the_ingest_package_nor_its_command(tmp_path: Path) -> None:
    wheel = build_wheel(SDK, tmp_path)
    assert packages(wheel) == {"asg_gateway"}
    assert commands(wheel) == {"asg-submit"}
    assert "asg_gateway/py.typed" in wheel.namelist()


def test_service_wheel_contains_the_ingest_package_without_the_sdk(tmp_path: Path) -> None:
    wheel = build_wheel(ROOT, tmp_path)
    assert packages(wheel) == {"ingest"}
    assert commands(wheel) == {"ingest"}
    assert "ingest/py.typed" in wheel.namelist()
    assert not [name for name in wheel.namelist() if name.startswith("ingest/sdk/")]


@pytest.mark.parametrize("package", ["ingest", "tests"])
def test_sdk_does_not_import_the_service_or_its_tests(package: str) -> None:
    for module in SDK.rglob("*.py"):
        source = module.read_text()
        assert f"import {package}" not in source, module
        assert f"from {package}" not in source, module
