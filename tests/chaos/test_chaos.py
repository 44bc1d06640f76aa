"""A short run of `scripts/chaos`: a spread of faults, one seed."""

import shutil
import subprocess
import sys

import pytest

FAULTS = [
    "rabbit-kill-leader",
    "rabbit-close-connections",
    "rabbit-binding-removed",
    "worker-kill-mid-expansion",
    "worker-kill-after-publish",
    "shim-kill-after-charge",
    "worker-term",
    "store-kill",
    "store-truncate",
    "net-broker-reset",
    "net-store-blackhole",
]


@pytest.mark.timeout(420)
def test_a_short_run() -> None:
    """Nothing lost, nothing unexpected, one id a key, no replay charged, no valid dead letter; every fault shown."""
    for program in ("rabbitmq-server", "epmd", "asd"):
        if shutil.which(program) is None:
            pytest.skip(f"chaos: no {program} on PATH")
    command = [sys.executable, "-m", "tests.chaos", "--seconds", "20", "--seed", "7", "--span", "0.4"]
    for name in FAULTS:
        command += ["--fault", name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
