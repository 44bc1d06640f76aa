"""Cancellation that is ours, and that of aiormq, which cancels every caller that waits on a connection that breaks."""

import asyncio


def is_cancelled() -> bool:
    """Return whether the current task was cancelled, and not only something that it awaits."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
