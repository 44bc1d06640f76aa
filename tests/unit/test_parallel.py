"""`scripts/test` runs files side by side in worker processes, and those that measure time alone and last."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFTEST = """
import os
import time
from pathlib import Path

import pytest

from tests.support.parallel import pytest_sessionfinish, pytest_testnodedown, pytest_xdist_make_scheduler
from tests.support.summary import note_server, pytest_terminal_summary


@pytest.fixture(autouse=True)
def logged(request):
    note_server("Server", "on PATH")
    note_server("Process", os.environ["PYTEST_XDIST_WORKER"])
    begin = time.monotonic()
    time.sleep(0.05)
    yield
    with Path("log").open("a") as log:
        log.write(f"{request.node.nodeid} {begin} {time.monotonic()}\\n")
"""
SIDE_BY_SIDE = ["tests/contract/test_a.py", "tests/unit/test_b.py", "tests/unit/test_c.py"]
ALONE = ["tests/chaos/test_chaos.py", "tests/e2e/test_http_limits.py", "tests/e2e/test_isolation.py"]


def run(directory: Path, files: list[str], *, last: str = "pass") -> subprocess.CompletedProcess[str]:
    """Run files of two tests each in two processes; the last test is this statement."""
    (directory / "conftest.py").write_text(CONFTEST)
    for file in files:
        path = directory / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"def test_one(): pass\ndef test_two(): {last if file == files[-1] else 'pass'}\n")
    options = "-n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 -p no:cacheprovider"
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options.split()],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def periods(directory: Path) -> dict[str, list[tuple[float, float]]]:
    """File to when its tests began and ended."""
    found: dict[str, list[tuple[float, float]]] = {}
    for line in (directory / "log").read_text().splitlines():
        test, begin, end = line.split()
        found.setdefault(test.split("::")[0], []).append((float(begin), float(end)))
    return found


@pytest.mark.parametrize(("side_by_side", "alone"), [(SIDE_BY_SIDE, ALONE), (SIDE_BY_SIDE[:1], ALONE[:1]), ([], ALONE)])
def test_files_that_measure_time_run_alone_and_last(tmp_path: Path, side_by_side: list[str], alone: list[str]) -> None:
    done = run(tmp_path, side_by_side + alone)
    assert done.returncode == 0, done.stdout + done.stderr
    found = periods(tmp_path)
    assert {file: len(times) for file, times in found.items()} == dict.fromkeys(side_by_side + alone, 2)
    others_end = max((end for file in side_by_side for _, end in found[file]), default=0.0)
    times = sorted(period for file in alone for period in found[file])
    begins, ends = [begin for begin, _ in times], [end for _, end in times]
    assert all(end <= begin for end, begin in zip([others_end, *ends], begins, strict=False))


def test_files_that_take_long_begin_first(tmp_path: Path) -> None:
    long_file = "tests/simulation/test_simulation.py"
    done = run(tmp_path, [*SIDE_BY_SIDE, long_file])
    assert done.returncode == 0, done.stdout + done.stderr
    begins = sorted((times[0][0], file) for file, times in periods(tmp_path).items())
    assert long_file in [file for _, file in begins[:2]]  # there are two processes


def test_failure_and_servers_of_all_processes_are_reported_once(tmp_path: Path) -> None:
    done = run(tmp_path, SIDE_BY_SIDE + ALONE, last="assert False")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "1 failed, 11 passed" in done.stdout
    servers = [line for line in done.stdout.splitlines() if line.startswith(("Server", "Process"))]
    assert servers == ["Process: gw0; gw1", "Server: on PATH"]


def test_process_that_crashes_fails_the_run(tmp_path: Path) -> None:
    done = run(tmp_path, SIDE_BY_SIDE, last="import os; os._exit(0)")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "crashed while running 'tests/unit/test_c.py::test_two'" in done.stdout
