"""Whether a SQLite file of the embedded default can be written, has room and is whole."""

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
"""Bytes above which a file is not read through."""


def check_file(area: str, path: Path) -> list[Finding]:
    """All findings about the file, which need not be there yet."""
    return [*_writable(area, path), *_room(area, path), *_whole(area, path)]


def read_time(path: Path) -> float:
    """Seconds to open the file and read from it. Raises sqlite3.Error."""
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
        yield ok(area, f"{path} can be written, {path.stat().st_size / 2**20:,.1f} MiB")
    else:
        yield ok(area, f"{path} is not there yet and can be made")


def _room(area: str, path: Path) -> Iterator[Finding]:
    there = path.parent
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if free < _FEW:
        yield error(area, f"{free / 2**20:,.0f} MiB of disk left", "free disk: without it nothing is accepted")
    elif free < _SOME:
        yield warning(area, f"{free / 2**20:,.0f} MiB of disk left", "free disk")
    else:
        yield ok(area, f"{free / 2**30:,.0f} GiB of disk left")


def _whole(area: str, path: Path) -> Iterator[Finding]:
    if not path.exists() or path.stat().st_size > _LARGE:
        return
    try:
        db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5)
        try:
            (answer,) = db.execute("PRAGMA quick_check(1)").fetchone()
        finally:
            db.close()
    except sqlite3.Error as why:
        answer = str(why)
    if answer != "ok":
        yield error(area, f"{path} is damaged: {answer}", "move it away and restore a copy; an empty one is made anew")
    else:
        yield ok(area, f"{path} is whole")
