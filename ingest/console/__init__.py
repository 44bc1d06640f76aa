"""The console: pages for operators and support people in a browser. `Console` is the ASGI application."""

from ingest.console.app import Console

__all__ = ["Console"]
