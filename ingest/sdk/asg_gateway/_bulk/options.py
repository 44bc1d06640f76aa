"""The arguments of `asg-submit`."""

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from asg_gateway._protocol import BASE_URL
from asg_gateway._tasks import MAX_TASKS
from asg_gateway._version import __version__

_ABOUT = """Submit labelling tasks from a file: JSONL, one task a line as POST /v1/tasks takes it, or CSV with
the columns type, data_url, question, options (separated by | or a JSON array) and, where wanted,
consensus_threshold, callback_url, idempotency_key, label_spec.NAME."""
_EPILOG = f"""
The API key is read from ASG_API_KEY or API_KEY, or from --api-key-file; the gateway's address from ASG_BASE_URL.

Run it again after an interruption, a lost connection or an exhausted quota: nothing is submitted twice. Tasks without
an idempotency_key get one made from what they say, and from how many equal ones come before them in the file. So the
same lines in another file are the same tasks; --namespace tells them apart. Keys are remembered for the customer's
retention, 7 days by default; the journal beside the file, FILE.journal, for as long as it is kept.

Lines that are refused are in FILE.errors.jsonl with the reasons. Mend them in the file, or send them from another.

exit codes:
  0    every line was accepted, now or before
  1    some lines were refused, all others were accepted
  2    wrong usage, file, API key or --callback-url
  3    the gateway cannot be reached or asks to wait for too long: run it again
  4    the quota is exhausted: run it again when there is more (a chunk is taken whole: --chunk takes smaller ones)
  130  interrupted (143: SIGTERM): run it again

The default gateway is {BASE_URL}."""


class UsageError(Exception):
    """The command cannot be carried out as given; the message says what to change."""


@dataclass(frozen=True)
class Options:
    """What `asg-submit` was asked to do. `file` None: standard input."""

    file: Path | None
    format: str
    api_key: str
    base_url: str
    callback_url: str | None
    concurrency: int
    chunk: int
    namespace: str
    journal: Path | None
    errors: Path
    ids: Path | None
    patience: float
    dry_run: bool
    quiet: bool
    json: bool


def parse(arguments: Sequence[str] | None, env: Mapping[str, str] = os.environ) -> Options:
    """Raises UsageError; argparse's own complaints end the process with code 2."""
    given = _parser().parse_args(arguments)
    file = None if given.file == "-" else Path(given.file)
    name = "asg-submit" if file is None else str(file)
    return Options(
        file=file,
        format=given.format or _format_of(given.file),
        api_key="" if given.dry_run else _api_key(given.api_key_file, env),
        base_url=given.base_url or env.get("ASG_BASE_URL") or BASE_URL,
        callback_url=given.callback_url,
        concurrency=given.concurrency,
        chunk=given.chunk,
        namespace=given.namespace,
        journal=None
        if given.no_journal or (file is None and not given.journal)
        else Path(given.journal or f"{name}.journal"),
        errors=Path(given.errors or f"{name}.errors.jsonl"),
        ids=Path(given.ids) if given.ids else None,
        patience=given.patience,
        dry_run=given.dry_run,
        quiet=given.quiet,
        json=given.json,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "asg-submit", description=_ABOUT, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("file", metavar="FILE", help="JSONL or CSV; - is standard input")
    add("--format", choices=["jsonl", "csv"], help="default: by the file's name, jsonl for standard input")
    add("--base-url", metavar="URL", help="of the gateway")
    add("--api-key-file", metavar="PATH", help="holds the API key, nothing else")
    add("--callback-url", metavar="URL", help="for each task without one; a registered webhook URL")
    add("--concurrency", metavar="N", type=_between(1, 64), default=4, help="chunks in flight [4]")
    add("--chunk", metavar="N", type=_between(1, MAX_TASKS), default=MAX_TASKS, help=f"lines a chunk [{MAX_TASKS}]")
    add("--namespace", metavar="TEXT", default="", help="submit lines anew that were submitted under another one")
    add("--ids", metavar="PATH", help="add a line with line, task_id and batch_id for each task that is accepted")
    add("--errors", metavar="PATH", help="where refused lines go [FILE.errors.jsonl]")
    add("--journal", metavar="PATH", help="where finished chunks are noted [FILE.journal; none for standard input]")
    add("--no-journal", action="store_true", help="note nothing")
    add("--patience", metavar="SECONDS", type=_between(1, 86_400), default=300, help="retry a chunk for so long [300]")
    add("--dry-run", action="store_true", help="check the file, submit nothing; needs no API key")
    add("--quiet", action="store_true", help="no progress")
    add("--json", action="store_true", help="print the result as JSON on standard output")
    add("--version", action="version", version=__version__)
    return parser


def _between(least: int, most: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"must be {least} to {most}")
        return value

    return number


def _format_of(name: str) -> str:
    suffix = Path(name).suffix.lower()
    if name == "-" or suffix in (".jsonl", ".ndjson"):
        return "jsonl"
    if suffix == ".csv":
        return "csv"
    raise UsageError(f"{name}: say with --format whether it is jsonl or csv")


def _api_key(path: str | None, env: Mapping[str, str]) -> str:
    if path is not None:
        try:
            return Path(path).read_text().strip()
        except (OSError, ValueError) as error:
            raise UsageError(f"--api-key-file: {error}") from None
    key = env.get("ASG_API_KEY") or env.get("API_KEY")
    if not key:
        raise UsageError("set ASG_API_KEY (or API_KEY) to the API key, or name a file with --api-key-file")
    return key
