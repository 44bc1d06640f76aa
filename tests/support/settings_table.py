"""Generates the table in deploy/settings.md from the settings: `python -m tests.support.settings_table`."""

from ingest import settings


def markdown() -> str:
    rows = [
        f"| `{name}` | {f'`{default}`' if default else ''} | {text} |" for name, default, text in settings.described()
    ]
    return "\n".join(["| variable | default | what |", "| --- | --- | --- |", *rows, ""])


if __name__ == "__main__":
    print(markdown(), end="")
