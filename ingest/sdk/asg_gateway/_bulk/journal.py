"""Records finished chunks, one JSON line each, beside the file. Without it they are sent again, as replays."""

import json
import os
from pathlib import Path
from typing import IO

from asg_gateway._bulk.items import Chunk
from asg_gateway._bulk.streams import writing


class Journal:
    """An append-only file. A line is on disk before its chunk counts as done. An incomplete last line is skipped.

    Args:
        path: the file; None for no journal.
        destination: identifies gateway and customer. Chunks of other destinations do not count as done.
    """

    def __init__(self, path: Path | None, destination: str) -> None:
        self._destination = destination
        self._path = path
        self._done: set[str] = set()
        self._file: IO[bytes] | None = None
        if path is not None:
            self._file = path.open("ab+")
            self._read(self._file)

    def is_done(self, chunk: Chunk) -> bool:
        """Return whether all tasks of the chunk were accepted."""
        return chunk.digest(self._destination) in self._done

    def record(self, chunk: Chunk) -> None:
        """Record that all tasks of the chunk were accepted. Raises RunError."""
        if self._file is None or self._path is None:
            return
        items = chunk.items
        entry = {
            "done": chunk.digest(self._destination),
            "key": chunk.key,
            "tasks": len(items),
            "lines": [items[0].number, items[-1].number],
        }
        with writing(self._path):
            self._file.write(json.dumps(entry).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file. Raises RunError."""
        if self._file is not None and self._path is not None:
            with writing(self._path):
                self._file.close()

    def _read(self, file: IO[bytes]) -> None:
        file.seek(0)
        incomplete = False
        for line in file:
            incomplete = not line.endswith(b"\n")
            try:
                self._done.add(str(json.loads(line)["done"]))
            except (ValueError, KeyError, TypeError):
                continue
        if incomplete:
            file.write(b"\n")
