"""Generates deploy/metrics.md from the definitions: `python -m tests.support.metrics_table > deploy/metrics.md`."""

from ingest.domain.metrics import METRICS

_HEAD = """# Metrics

Served at `/metrics` on `INGEST_METRICS_PORT`, with the standard `process_*` metrics (label `process`: `0`, `1`, … of
`--workers` or `--processes`). No label holds a customer or an id. Made from `ingest/domain/metrics.py`.

| metric | type | labels | what |
| --- | --- | --- | --- |
"""


def markdown() -> str:
    """Return the whole page."""
    rows = [
        f"| `{metric.name}` | {metric.type} | {', '.join(f'`{label}`' for label in metric.labels)} | {metric.help} |"
        for metric in METRICS
    ]
    return _HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
