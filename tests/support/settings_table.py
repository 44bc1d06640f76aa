"""Generates the table in deploy/settings.md from the settings: `python -m tests.support.settings_table`."""

from ingest import settings


def markdown() -> str:
    rows = [
        f"| `{setting.variable}` | {f'`{setting.default}`' if setting.default else ''} | {setting.meaning} |"
        for setting in settings.described()
    ]
    return "\n".join(["| variable | default | what |", "| --- | --- | --- |", *rows, ""])


if __name__ == "__main__":
    print(markdown(), end="")
