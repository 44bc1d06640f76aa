"""The child process that parses large bodies: `python -m ingest.parsing.child`, which `ParserProcess` starts.

It answers the requests on stdin, one at a time, on stdout. It ends when stdin ends, so it does not outlive its parent.
"""

import gc
import os
import resource
import signal
import sys
from typing import BinaryIO, Final

from ingest.parsing.messages import LENGTH_BYTES, answer, framed

MEMORY: Final = 384 * 1024 * 1024
"""Bytes of address space. No body needs half of it; a defect must not use up the memory of the machine."""


def main() -> None:
    """Answer requests until stdin ends."""
    # Signals to the whole process group are for the parent, which still needs answers for what is in flight.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what anything prints must not get among the answers
    # A body becomes millions of objects without a cycle among them.
    gc.freeze()
    gc.disable()
    while message := _read(sys.stdin.buffer):
        answers.writelines(framed(answer(message)))
        answers.flush()
        del message
        gc.collect()


def _read(file: BinaryIO) -> bytes:
    """Return the next message; nothing at the end of the file."""
    return file.read(int.from_bytes(file.read(LENGTH_BYTES)))


if __name__ == "__main__":
    main()
