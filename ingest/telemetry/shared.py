"""Where the processes of one supervisor leave what they count and how they are: a private directory of small files."""

import shutil
import tempfile
from pathlib import Path

import msgspec

from ingest.domain.errors import ConfigurationError
from ingest.telemetry.health import Report

_encode = msgspec.json.encode
_decode = msgspec.json.Decoder(Report).decode


class ProcessReports:
    """Made by the supervisor before it starts processes. Raises ConfigurationError where there is no place for it.

    `directory` also holds prometheus_client's files, one a kind of metric and process.
    """

    def __init__(self) -> None:
        try:
            self.directory = Path(tempfile.mkdtemp(prefix="ingest-"))
        except OSError as error:
            raise ConfigurationError(
                f"cannot make a directory for the metrics of several processes: {error}. Set TMPDIR to a place that "
                "can be written"
            ) from error

    def write(self, report: Report) -> None:
        """Leave a report, whole or not at all."""
        path = self._report(report.process)
        new = path.with_suffix(".new")
        new.write_bytes(_encode(report))
        new.replace(path)

    def reports(self) -> list[Report]:
        """The newest report of each process that has one."""
        found = []
        for path in sorted(self.directory.glob("health_*.json")):
            try:
                found.append(_decode(path.read_bytes()))
            except FileNotFoundError:
                continue  # its process has died this moment
        return found

    def forget(self, process: str) -> None:
        """A process has died: what it was at the moment is no more. What it has counted stays."""
        for path in (*self.directory.glob(f"gauge_live*_{process}.db"), self._report(process)):
            path.unlink(missing_ok=True)

    def remove(self) -> None:
        """The end of all."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _report(self, process: str) -> Path:
        return self.directory / f"health_{process}.json"
