"""Charts of the measured figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt

from tests.bench.measure import Row


def save(results: Mapping[str, Sequence[Row]], path: Path) -> None:
    """Save two charts per bench: the rate, and the CPU time per item of all processes (for `memory`, the RSS)."""
    mpl.use("Agg")
    figure, axes = plt.subplots(len(results), 2, figsize=(12, 2.6 * len(results)), squeeze=False)
    for (left, right), (bench, rows) in zip(axes, results.items(), strict=True):
        names = [row.name for row in rows][::-1]
        left.set_title(f"{bench}: per second")
        left.barh(names, [row.rate for row in rows][::-1], color="tab:blue")
        if bench == "memory":
            right.set_title("memory: RSS in MB during the run")
            for row in rows:
                right.plot([done / row.series[-1][0] for done, _ in row.series], [mb for _, mb in row.series])
            right.set_ylim(bottom=0)
            right.legend([row.name for row in rows], fontsize="small")
            continue
        right.set_title(f"{bench}: CPU µs per item")
        start = [0.0] * len(rows)
        for part, colour in (("cpu", "tab:blue"), ("broker", "tab:orange"), ("store", "tab:red")):
            width = [getattr(row, part) for row in rows][::-1]
            right.barh(names, width, left=start, color=colour, label=part)
            start = [a + b for a, b in zip(start, width, strict=True)]
        right.legend(["process", "RabbitMQ", "Aerospike"], fontsize="small")
        right.set_yticklabels([])
    figure.tight_layout()
    figure.savefig(path, dpi=110)
