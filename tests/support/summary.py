"""The last lines of a run: the servers that the tests ran on."""

import pytest

origins: dict[str, list[str]] = {}
"""Server to what it ran on, or why it was unavailable: one text, unless worker processes differ."""


def note_server(name: str, origin: str) -> None:
    """Record what a server ran on, or why it was unavailable."""
    if origin not in origins.setdefault(name, []):
        origins[name].append(origin)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what the tests ran on."""
    for name, texts in sorted(origins.items()):
        terminalreporter.write_line(f"{name}: {'; '.join(sorted(texts))}")
