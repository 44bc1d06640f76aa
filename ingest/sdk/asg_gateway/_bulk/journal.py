"""Chunks that are done, one JSON line each, beside the file. Only a help: without it they are answered as replays."""

import json
import os
from pathlib import Path
from typing import IO

from asg_gateway._bulk.items import Chunk


class Journal:
    """Append-only; a line is on disk before the chunk counts as done. A torn last line is passed over.

    Args:
        path: of the file; None keeps no journal.
        destination: whose tasks: gateway, key and namespace. Chunks of others are not taken for done.
    """

    def __init__(self, path: Path | None, destination: str) -> None:
        self._destination = destination
        self._done: set[str] = set()
        self._file: IO[bytes] | None = None
        if path is not None:
            self._file = path.open("ab+")
            self._read(self._file)

    def is_done(self, chunk: Chunk) -> bool:
        """Whether all its tasks were accepted."""
        return chunk.digest(self._destination) in self._done

    def note(self, chunk: Chunk) -> None:
        """All tasks of the chunk were accepted."""
        if self._file is None:
            return
        items = chunk.items
        entry = {
            "done": chunk.digest(self._destination),
            "tasks": len(items),
            "lines": [items[0].number, items[-1].number],
        }
        self._file.write(json.dumps(entry).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _read(self, file: IO[bytes]) -> None:
        file.seek(0)
        torn = False
        for line in file:
            torn = not line.endswith(b"\n")
            try:
                self._done.add(str(json.loads(line)["done"]))
            except (ValueError, KeyError, TypeError):
                continue
        if torn:
            file.write(b"\n")
