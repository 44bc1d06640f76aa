"""Runs the tests in a copy of the code, where one file is a mutant."""

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_ROOT: Final = Path(__file__).parents[2]
_ADMISSION: Final = ("tests/unit/admission",)
_SHIM: Final = ("tests/unit/shim/test_batcher*.py", "tests/unit/shim/test_pipeline.py", "tests/unit/shim/test_shim*.py")
_WORKER: Final = ("tests/unit/worker",)
_STORE: Final = ("tests/unit/store", *[f"tests/contract/test_{name}.py" for name in ("store", "quotas", "registry")])
_TESTS: Final = {
    "admission": _ADMISSION + _WORKER,
    "domain": ("tests/unit/domain/test_ledger.py", *_STORE, *_ADMISSION, *_WORKER),
    "fair_queue.py": ("tests/unit/test_fair_queue.py", "tests/unit/parsing/test_serial.py", *_SHIM),
    "shim": _SHIM,
    "store": _STORE + _ADMISSION,
    "worker": _WORKER,
}
"""The tests of each part of the package."""
_SLOW: Final = ("test_admission.py", "test_large_deliveries.py")
"""Files that take longer than all others together, and fail last: examples of hypothesis, and megabytes to parse."""
_ABOUT_SOURCE: Final = "test_mutations.py"
"""It compares the source with texts, so it notices a mutant that behaves as the code does."""
_PYTEST: Final = (
    "pytest -x -q --tb=no -p no:cacheprovider -p pytest_asyncio.plugin -p pytest_timeout "
    "-o timeout=40 -o timeout_method=thread"  # a thread also ends an endless loop that ignores exceptions
)
_LIMIT: Final = 600
"""Seconds after which the tests of a mutant that does not end are killed."""


class CodeCopy:
    """A copy of the code and its tests in an empty directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.package = directory / "ingest"
        for name in ("ingest", "tests"):
            shutil.copytree(_ROOT / name, directory / name)
        shutil.copy(_ROOT / "pyproject.toml", directory)

    def write(self, file: str, source: bytes) -> None:
        """Replace a file of the package."""
        path = self.package / file
        path.write_bytes(source)
        # Python recognises a change by size and time in seconds, which may both be the same.
        Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)

    def failing_test(self, files: Sequence[str]) -> str | None:
        """Run the tests of files of the package, those that fail soonest first; return the first failure, if any."""
        parts = dict.fromkeys(file.split("/", 1)[0] for file in files)
        tests = dict.fromkeys(test for part in parts for test in self._files(_TESTS[part]))
        names = [Path(file).stem for file in files]
        return self._pytest(sorted(tests, key=lambda test: (_SLOW.count(test.name), not _is_about(test, names))))

    def failing_schedules(self, schedules: int) -> str | None:
        """Run the schedules of the simulation, then so many random ones; return what fails, if anything does."""
        tests = [test for test in self._files(["tests/simulation"]) if test.name != _ABOUT_SOURCE]
        if failing := self._pytest(tests):
            return failing
        code, output = self._run("tests.simulation", "--schedules", str(schedules), "--seconds", str(_LIMIT))
        ran = re.search(r"[\d,]+ schedules", output)
        if code > 0 and ran is None:
            raise RuntimeError(output)
        return None if code == 0 else ran[0] if ran else "a schedule that does not end"

    def _files(self, patterns: Sequence[str]) -> list[Path]:
        """Return the test files that match, or are in folders that match."""
        paths = [path for pattern in patterns for path in sorted(self._directory.glob(pattern))]
        return [file for path in paths for file in (sorted(path.glob("test_*.py")) if path.is_dir() else [path])]

    def _pytest(self, tests: Sequence[Path]) -> str | None:
        code, output = self._run(*_PYTEST.split(), "-k", "not aerospike and not random", *map(str, tests))
        if code > 2:
            raise RuntimeError(output)
        failed = re.search(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
        return None if code == 0 else failed[1] if failed else "a test that does not end"

    def _run(self, *arguments: str) -> tuple[int, str]:
        """Run a module; return its exit code, negative if it was killed because of the time limit, and its output."""
        environment = {"PYTHONPATH": str(self._directory), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "CI": "true"}
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=self._directory,
            env=os.environ | environment,  # with CI, hypothesis chooses the same examples in every run
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=_LIMIT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
        return process.returncode, output


def _is_about(test: Path, names: Sequence[str]) -> bool:
    """Return whether the name of a test file contains one of these names."""
    return any(name in test.stem for name in names)
