"""The console: pages for operators and support people in a browser."""

from ingest.console.app import Console
from ingest.console.server import ConsoleServer

__all__ = ["Console", "ConsoleServer"]
