"""Cohorts of requests."""

import contextvars

import structlog

from ingest.shim.coalescer import Coalescer


async def test_a_cohort_does_not_log_under_the_first_ones_name() -> None:
    """What is bound for one request is not bound for the cohort; what is bound for the process is."""
    seen: list[dict[str, object]] = []

    async def run(items: list[int]) -> list[int]:
        seen.append(structlog.contextvars.get_contextvars())
        return items

    def make() -> Coalescer[int, int]:
        structlog.contextvars.bind_contextvars(role="serve")
        return Coalescer(run, size=10, slots=1, waiting=10)

    coalescer = contextvars.copy_context().run(make)
    with structlog.contextvars.bound_contextvars(request_id="r"):
        assert await coalescer.submit(1) == 1
    assert seen == [{"role": "serve"}]
