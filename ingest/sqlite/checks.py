"""Checks of a SQLite file: it is writable, its disk has free space, and it is not damaged."""

import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ingest.domain.findings import Finding, error, ok, warning

_FEW: Final = 100 * 2**20
_SOME: Final = 2**30
_LARGE: Final = 2**30
"""Bytes; a larger file is not checked for damage, because that reads all of it."""


def check_file(area: str, path: Path) -> list[Finding]:
    """Check a file, which may not exist yet, and return the findings."""
    return [*_writable(area, path), *_free_space(area, path), *_integrity(area, path)]


def read_time(path: Path) -> float:
    """Return the seconds that it takes to open the file and read from it. Raises sqlite3.Error."""
    start = time.perf_counter()
    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5)
    try:
        db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    finally:
        db.close()
    return time.perf_counter() - start


def _writable(area: str, path: Path) -> Iterator[Finding]:
    there = path if path.exists() else path.parent
    while not there.exists():
        there = there.parent
    if not os.access(there, os.W_OK) or (path.exists() and not os.access(path.parent, os.W_OK)):
        yield error(
            area, f"{there} cannot be written", f"chown or chmod it for uid {os.getuid()}, or set INGEST_DATA_DIR"
        )
    elif path.exists():
        yield ok(area, f"{path} is writable, {path.stat().st_size / 2**20:,.1f} MiB")
    else:
        yield ok(area, f"{path} does not exist yet and can be created")


def _free_space(area: str, path: Path) -> Iterator[Finding]:
    there = path.parent
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if free < _FEW:
        yield error(area, f"{free / 2**20:,.0f} MiB of disk left", "free disk space: without it nothing is accepted")
    elif free < _SOME:
        yield warning(area, f"{free / 2**20:,.0f} MiB of disk left", "free disk space")
    else:
        yield ok(area, f"{free / 2**30:,.0f} GiB of disk left")


def _integrity(area: str, path: Path) -> Iterator[Finding]:
    if not path.exists() or path.stat().st_size > _LARGE:
        return
    try:
        db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5)
        try:
            (answer,) = db.execute("PRAGMA quick_check(1)").fetchone()
        finally:
            db.close()
    except sqlite3.Error as problem:
        answer = str(problem)
    if answer != "ok":
        do = "move it away and restore a copy; without a copy, an empty file is created"
        yield error(area, f"{path} is damaged: {answer}", do)
    else:
        yield ok(area, f"{path} is not damaged")
