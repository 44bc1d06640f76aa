"""CPU time and memory of processes, read from /proc."""

import contextlib
import os
from pathlib import Path
from typing import Final

_TICK: Final = os.sysconf("SC_CLK_TCK")


def cpu(pid: int) -> float:
    """Return the CPU seconds, user and system, of a process and its running descendants."""
    total = 0
    for member in _process_tree(pid):
        fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / _TICK


def rss(pid: int, *, peak: bool) -> float:
    """Return the resident MB, current or peak, of the largest process among a process and its descendants."""
    name = "VmHWM" if peak else "VmRSS"
    sizes: list[float] = []
    for member in _process_tree(pid):
        lines = Path(f"/proc/{member}/status").read_text().splitlines()
        sizes += [int(line.split()[1]) / 1024 for line in lines if line.startswith(name)]
    return max(sizes)


def _process_tree(pid: int) -> list[int]:
    members = [pid]
    for member in members:  # grows while it is iterated
        for thread in Path(f"/proc/{member}/task").iterdir():
            with contextlib.suppress(FileNotFoundError):  # the thread has ended
                members += map(int, (thread / "children").read_text().split())
    return members
