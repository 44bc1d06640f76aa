"""The console: pages for operators and support people in a browser."""

from ingest.console.app import Console
from ingest.console.events import Events
from ingest.console.server import ConsoleServer

__all__ = ["Console", "ConsoleServer", "Events"]
