"""Parses bodies without holding the event loop for more than a few milliseconds."""

import asyncio
from typing import Final

from ingest.domain.json_structure import structure_at_most
from ingest.domain.parsing import Unparsed, parse
from ingest.domain.submissions import Submission
from ingest.parsing import messages
from ingest.parsing.process import ParserProcess
from ingest.parsing.serial import SerialExecutor

_AT_ONCE: Final = 4 * 1024
"""Bytes of a body that is parsed at once, whatever it contains: it takes at most 1 ms."""
_MAX_INLINE_BYTES: Final = 384 * 1024
_MAX_INLINE_STRUCTURE: Final = 24 * 1024
"""The largest body that is parsed in this process: it takes less than 20 ms. A batch of 1,000 usual tasks takes 6 ms.
The child process would add 1 ms of CPU time."""
UNLIMITED: Final = 1_000_000


class SubmissionParser:
    """Parses bodies: the smallest at once, others one at a time, and large ones in a child process.

    Of each of the last two, customers get equal shares of the time.

    Args:
        max_waiting: most bodies that wait, of each.
        deadline: how long a caller waits, in seconds; None for as long as it takes.
        process: parses large bodies.
    """

    def __init__(
        self, max_waiting: int = UNLIMITED, deadline: float | None = None, process: ParserProcess | None = None
    ) -> None:
        self._deadline = deadline
        self._process = process or ParserProcess()
        self._inline = SerialExecutor(_parse_here, customer_of=_customer_of, max_waiting=max_waiting, holds_loop=True)
        self._large = SerialExecutor(self._parse_in_process, customer_of=_customer_of, max_waiting=max_waiting)

    async def parse(self, unparsed: Unparsed) -> Submission:
        """Return the submission in a body.

        Raises:
            InvalidSubmission: the body breaks a rule.
            QueueFull: too many bodies wait.
            TimeoutError: there was no result within the deadline.
            ParserFailed: the child process died or took too long.
        """
        if len(unparsed.body) <= _AT_ONCE:
            return parse(unparsed)
        executor = self._large if is_large(unparsed.body) else self._inline
        async with asyncio.timeout(self._deadline):
            return await executor.submit(unparsed)

    async def close(self) -> None:
        """End the child process. What still waits is cancelled."""
        await self._inline.close()
        await self._large.close()
        await self._process.close()

    async def _parse_in_process(self, unparsed: Unparsed) -> Submission:
        return messages.submission(await self._process.ask(messages.request(unparsed)))


def is_large(body: bytes) -> bool:
    """Return whether a body is parsed in the child process."""
    size = len(body)
    return size > _MAX_INLINE_STRUCTURE and (
        size > _MAX_INLINE_BYTES or structure_at_most(body) > _MAX_INLINE_STRUCTURE
    )


async def _parse_here(unparsed: Unparsed) -> Submission:
    return parse(unparsed)


def _customer_of(unparsed: Unparsed) -> str:
    return unparsed.cust_id
