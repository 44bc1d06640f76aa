"""`ingest settings`: every setting, its value and what it means."""

import os

import typer

from ingest import settings
from ingest.cli.options import Json
from ingest.domain.display import json_text, redacted, shown


def settings_(json: Json = False) -> None:
    """List the settings. They are environment variables; each has its value, its default and its meaning.

    Passwords are left out. Exit code 2 if a value is invalid.
    """
    rows = [(setting, settings.shown(setting, os.environ)) for setting in settings.described()]
    if json:
        fields = [
            {
                "name": setting.variable,
                "value": setting.default or None if value is None else value,
                "default": setting.default or None,
                "set": value is not None,
                "meaning": setting.meaning,
            }
            for setting, value in rows
        ]
        typer.echo(json_text(redacted(fields)))
    else:
        typer.echo("\n".join(_text(setting, None if value is None else shown(value)) for setting, value in rows))
    for name, closest in settings.unknown_variables(os.environ).items():
        typer.echo(shown(settings.misspelt(name, closest)), err=True)
    settings.load()


def _text(setting: settings.Described, value: str | None) -> str:
    default = f"default {setting.default}" if setting.default else "no default"
    state = f"{setting.default}  (default)" if value is None else f"{value}  (set; {default})"
    if value is None and not setting.default:
        state = "(not set)"
    return f"{setting.variable}={state}\n    {setting.meaning}"
