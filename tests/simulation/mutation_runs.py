"""Puts each fault of `mutations` into a copy of the code, and says how soon schedules find it."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.simulation.mutations import MUTATIONS, Mutation

_ROOT: Final = Path(__file__).parents[2]


def find_mutations(schedules: int, names: str) -> int:
    """Run up to `schedules` schedules for each fault whose name contains `names`; return how many were not found."""
    missed = 0
    mutations = [mutation for mutation in MUTATIONS if names in mutation.name]
    for mutation in mutations:
        with tempfile.TemporaryDirectory() as directory:
            shutil.copytree(_ROOT / "ingest", Path(directory, "ingest"))
            shutil.copytree(_ROOT / "tests", Path(directory, "tests"))
            shutil.copy(_ROOT / "pyproject.toml", directory)
            _apply(mutation, Path(directory, "ingest"))
            found = _find(directory, schedules)
        missed += not found
        print(f"{found or 'NOT FOUND':>24}  {mutation.name}", flush=True)
    print(f"{len(mutations) - missed} of {len(mutations)} faults found")
    return missed


def _apply(mutation: Mutation, root: Path) -> None:
    """Raises ValueError if the code does not have a text of the mutation exactly once."""
    for file, text, fault in mutation.changes:
        path = root / file
        source = path.read_text()
        if source.count(text) != 1:
            raise ValueError(f"{mutation.name}: {file} has its text {source.count(text)} times")
        path.write_text(source.replace(text, fault))


def _find(directory: str, schedules: int) -> str:
    """Return what finds the fault in the copy: so many random schedules, or a test; empty if nothing does."""
    env = os.environ | {"PYTHONPATH": directory}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", *arguments]
        return subprocess.run(command, cwd=directory, env=env, capture_output=True, text=True, check=False)

    random_schedules = run("tests.simulation", "--schedules", str(schedules), "--seconds", "3600")
    if ran := re.search(r"([\d,]+) schedules", random_schedules.stdout):
        if random_schedules.returncode == 1:
            return f"{ran[1]} schedules"
    else:
        raise RuntimeError(random_schedules.stderr)
    tests = run(
        "pytest", "-q", "-p", "no:cacheprovider", "tests/simulation", "tests/unit/worker", "-k", "not random", "-x"
    )
    return "a test" if tests.returncode == 1 else ""
