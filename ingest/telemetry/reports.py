"""The files in which the processes of one supervisor record metrics and health."""

import shutil
import tempfile
from pathlib import Path

import msgspec

from ingest.domain.errors import ConfigurationError
from ingest.telemetry.health import Report

_encode = msgspec.json.encode
_decode = msgspec.json.Decoder(Report).decode


class ProcessReports:
    """A private directory, made by the supervisor before it starts processes.

    `directory` also contains the files of prometheus_client, one per kind of metric and process.

    Raises:
        ConfigurationError: the directory cannot be created.
    """

    def __init__(self) -> None:
        try:
            self.directory = Path(tempfile.mkdtemp(prefix="ingest-"))
        except OSError as error:
            raise ConfigurationError(
                f"cannot create a directory for the metrics of several processes: {error}. Set TMPDIR to a "
                "writable directory"
            ) from error

    def write(self, report: Report) -> None:
        """Write a report atomically."""
        path = self._report(report.process)
        new = path.with_suffix(".new")
        new.write_bytes(_encode(report))
        new.replace(path)

    def reports(self) -> list[Report]:
        """Return the newest report of each process that has one."""
        reports = []
        for path in sorted(self.directory.glob("health_*.json")):
            try:
                reports.append(_decode(path.read_bytes()))
            except FileNotFoundError:
                continue  # its process died just now
        return reports

    def forget(self, process: str) -> None:
        """Remove the gauges and the report of a process that died. Its counters stay."""
        for path in (*self.directory.glob(f"gauge_live*_{process}.db"), self._report(process)):
            path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete the directory."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _report(self, process: str) -> Path:
        return self.directory / f"health_{process}.json"
