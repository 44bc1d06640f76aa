"""What processes use, read from /proc."""

import contextlib
import os
from pathlib import Path
from typing import Final

_TICK: Final = os.sysconf("SC_CLK_TCK")


def cpu(pid: int) -> float:
    """Seconds, user and system, of a process and all below it that live."""
    total = 0
    for each in _family(pid):
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / _TICK


def rss(pid: int, *, peak: bool) -> float:
    """MB, now or at its peak, of the largest of a process and all below it."""
    name = "VmHWM" if peak else "VmRSS"
    found = []
    for each in _family(pid):
        lines = Path(f"/proc/{each}/status").read_text().splitlines()
        found += [int(line.split()[1]) / 1024 for line in lines if line.startswith(name)]
    return max(found)


def _family(pid: int) -> list[int]:
    family = [pid]
    for each in family:
        for task in Path(f"/proc/{each}/task").iterdir():
            with contextlib.suppress(FileNotFoundError):  # a thread that has ended
                family += map(int, (task / "children").read_text().split())
    return family
