"""Faults that the simulation must find. Each is put into a copy of the code, where schedules then run."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final, NamedTuple

_ROOT: Final = Path(__file__).parents[2]


class Mutation(NamedTuple):
    """Replaces the only occurrence of `text` in a file by `fault`."""

    name: str
    file: str
    text: str
    fault: str


MUTATIONS: Final = (
    Mutation(
        "one refused event counts as an outage",
        "worker/processor.py",
        "failed.refused.append(plan)",
        "failed.unavailable.append(plan)",
    ),
    Mutation(
        "a redelivery with another body is only acked",
        "worker/planner.py",
        " and not decision.mismatch:\n        return None",
        ":\n        return None",
    ),
    Mutation("another body takes over a claim in doubt", "admission/attempt.py", "max(idle, self._doubt)", "idle"),
    Mutation("a live lease is taken over", "admission/attempt.py", "idle = stored.lease\n", "idle = 0\n"),
    Mutation(
        "a release forgets what was charged",
        "admission/admission.py",
        "charged=max(entry.charged, entry.tasks)",
        "charged=entry.charged",
    ),
    Mutation(
        "a publish in doubt is refunded",
        "shim/pipeline.py",
        "release(in_doubt, refund=False)",
        "release(in_doubt, refund=True)",
    ),
    Mutation(
        "a publish that was not taken counts as confirmed",
        "shim/pipeline.py",
        "if outcome is PublishOutcome.CONFIRMED:",
        "if True:",
    ),
    Mutation(
        "a batch is settled before its items",
        "worker/processor.py",
        "if items := [entry for plan in plans for entry in plan.entries[1:]]:",
        "if items := []:",
    ),
    Mutation(
        "the ledger is not settled",
        "worker/processor.py",
        "await self._settle(_without(attempt.plans, failed.plans))",
        "[]",
    ),
    Mutation(
        "deliveries are acked before they are finished",
        "worker/processor.py",
        "        attempt = Planned()\n        try:",
        "        attempt = Planned()\n        await consumer.ack(deliveries)\n        try:",
    ),
    Mutation(
        "a refunded submission is accepted without a charge",
        "worker/planner.py",
        "if is_uncharged(admitted, stored):",
        "if False:",
    ),
    Mutation("charges in doubt are never refunded", "worker/refunds.py", "await admission.refund_doubts()", "pass"),
    Mutation("a repeat is charged", "admission/attempt.py", "entry.tasks - entry.charged", "entry.tasks"),
    Mutation(
        "claims that exceed the quota stay",
        "admission/attempt.py",
        "await self._store.apply([give_back(entry) for pending in refused for entry in pending.owned])",
        "pass",
    ),
    Mutation(
        "the circuit never closes",
        "worker/breaker.py",
        "        if attempt.made_progress:\n            self._close()",
        "        if False:\n            pass",
    ),
    Mutation(
        "a stale copy of a batch item is emitted again",
        "worker/plan.py",
        "accepted = {entry.id for entry in stored.values() if entry.phase is Phase.ACCEPTED}",
        "accepted = set()",
    ),
)


def main(schedules: int) -> int:
    """Run up to `schedules` schedules for each fault; return the number of faults that were not found."""
    missed = 0
    for mutation in MUTATIONS:
        with tempfile.TemporaryDirectory() as directory:
            shutil.copytree(_ROOT / "ingest", Path(directory, "ingest"))
            shutil.copytree(_ROOT / "tests", Path(directory, "tests"))
            shutil.copy(_ROOT / "pyproject.toml", directory)
            file = Path(directory, "ingest", mutation.file)
            source = file.read_text()
            if source.count(mutation.text) != 1:
                raise ValueError(f"{mutation.name}: {mutation.file} has its text {source.count(mutation.text)} times")
            file.write_text(source.replace(mutation.text, mutation.fault))
            found = _find(directory, schedules)
        missed += not found
        print(f"{found or 'NOT FOUND':>24}  {mutation.name}", flush=True)
    print(f"{len(MUTATIONS) - missed} of {len(MUTATIONS)} faults found")
    return missed


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
