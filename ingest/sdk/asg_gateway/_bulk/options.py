"""The arguments of `asg-submit`."""

import argparse
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from asg_gateway._protocol import BASE_URL
from asg_gateway._tasks import MAX_TASKS
from asg_gateway._version import __version__

_ABOUT = """Submit labelling tasks from a file. JSONL: one task per line, as for POST /v1/tasks. CSV: the columns
type, data_url, question, options (separated by |, or a JSON array), and optionally consensus_threshold,
callback_url, idempotency_key, label_spec.NAME. Its cells are separated by commas, semicolons or tabs."""
_EPILOG = f"""
Over HTTP, the API key is read from ASG_API_KEY or API_KEY, or from --api-key-file; the gateway's address from
ASG_BASE_URL.

Over RabbitMQ (--amqp-url, or ASG_AMQP_URL without --base-url and --api-key-file), each chunk is published as one batch.
Other users of the machine can see a command line, so put a URL with a password into ASG_AMQP_URL. `published` lines are
in RabbitMQ. The service checks them later, and reports what it rejects in the queue feedback.CUST: a chunk with one
invalid line as a whole. FILE.journal has the key of each chunk, and its first and last line. Correct the line and run
the command again. --ids has the ids that the service will use.

After an interruption, a lost connection or (over HTTP) an exhausted quota, run the same command again: nothing is
submitted twice. Over RabbitMQ, the journal knows what was published, not what was accepted: if a chunk was rejected for
another reason than its content, such as quota_exhausted, ask the operator to redrive it, or use --no-journal.
A task without an idempotency_key gets one that is computed from its content and from the number of equal tasks before
it in the file. So the same lines in another file are the same tasks, unless --namespace differs. The gateway
remembers keys for the customer's retention, 7 days by default; FILE.journal, beside the file, remembers finished
chunks.

If the gateway limits the rate of submissions, all chunks in flight wait together, each for at most --patience seconds.

Refused lines are written to FILE.errors.jsonl with the reasons. Correct them in the file, or submit them from another.

exit codes:
  0    every line was accepted (over RabbitMQ: published), now or before
  1    some lines were refused, all other lines were accepted (or published)
  2    wrong usage: an argument, the file, the API key, --callback-url, a proxy variable, or a login or permission of
       RabbitMQ
  3    the gateway or RabbitMQ is unavailable or asks to wait for too long: run it again
  4    the quota is exhausted (HTTP): run it again when there is more (chunks are all or nothing: --chunk makes them
       smaller)
  5    any other failure, such as a full disk, or a closed standard output: correct it and run it again
  130  interrupted (143: SIGTERM): run it again

The default gateway is {BASE_URL}."""


class UsageError(Exception):
    """The arguments are invalid; the message says what to change."""


@dataclass(frozen=True)
class Options:
    """The options of `asg-submit`. If `file` is None, it reads standard input.

    If `amqp_url` is not None, it publishes to RabbitMQ, and neither `base_url` nor `api_key` is used.
    `encoding` and `delimiter` are None if they are to be detected.
    """

    file: Path | None
    format: str
    encoding: str | None
    delimiter: str | None
    api_key: str
    base_url: str
    amqp_url: str | None
    customer: str | None
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

    @property
    def source(self) -> str:
        """The name of the file for messages."""
        return "standard input" if self.file is None else str(self.file)


def parse(arguments: Sequence[str] | None, env: Mapping[str, str] = os.environ) -> Options:
    """Parse arguments. Raises UsageError; errors that argparse finds end the process with code 2."""
    parsed = _parser().parse_args(arguments)
    file = None if parsed.file == "-" else Path(parsed.file)
    amqp_url = _amqp_url(parsed, env)
    name = "asg-submit" if file is None else str(file)
    return Options(
        file=file,
        format=parsed.format or _format_of(parsed.file),
        encoding=parsed.encoding,
        delimiter=parsed.delimiter,
        api_key="" if parsed.dry_run or amqp_url is not None else _api_key(parsed.api_key_file, env),
        base_url=parsed.base_url or env.get("ASG_BASE_URL") or BASE_URL,
        amqp_url=amqp_url,
        customer=parsed.customer,
        callback_url=parsed.callback_url,
        concurrency=parsed.concurrency,
        chunk=parsed.chunk,
        namespace=parsed.namespace,
        journal=None
        if parsed.no_journal or (file is None and not parsed.journal)
        else Path(parsed.journal or f"{name}.journal"),
        errors=Path(parsed.errors or f"{name}.errors.jsonl"),
        ids=Path(parsed.ids) if parsed.ids else None,
        patience=parsed.patience,
        dry_run=parsed.dry_run,
        quiet=parsed.quiet,
        json=parsed.json,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "asg-submit", description=_ABOUT, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("file", metavar="FILE", help="JSONL or CSV; - is standard input")
    add("--format", choices=["jsonl", "csv"], help="default: from the file name; jsonl for standard input")
    add("--encoding", metavar="NAME", type=_encoding, help="default: UTF-8, or UTF-16 if the file is marked as that")
    add("--delimiter", metavar="CHAR", type=_delimiter, help="what separates CSV cells: a character, or tab")
    add("--base-url", metavar="URL", help="the URL of the gateway")
    add("--api-key-file", metavar="PATH", help="a file that contains only the API key")
    add(
        "--amqp-url",
        metavar="URL",
        help="publish to this RabbitMQ: amqps://user:password@host/vhost; better in ASG_AMQP_URL",
    )
    add("--customer", metavar="CUST", help="the customer, over RabbitMQ [the user of the URL]")
    add("--callback-url", metavar="URL", help="a registered webhook URL for each task without one")
    add("--concurrency", metavar="N", type=_between(1, 64), default=4, help="chunks in flight [4]")
    add("--chunk", metavar="N", type=_between(1, MAX_TASKS), default=MAX_TASKS, help=f"lines per chunk [{MAX_TASKS}]")
    add("--namespace", metavar="TEXT", default="", help="submit lines again that were submitted with another namespace")
    add(
        "--ids",
        metavar="PATH",
        help="append line, task_id and batch_id of each task sent to this file",
    )
    add("--errors", metavar="PATH", help="the file for refused lines [FILE.errors.jsonl]")
    add("--journal", metavar="PATH", help="the file for finished chunks [FILE.journal; none for standard input]")
    add("--no-journal", action="store_true", help="keep no journal")
    add("--patience", metavar="SECONDS", type=_between(1, 86_400), default=300, help="how long to retry a chunk [300]")
    add("--dry-run", action="store_true", help="check the file without submitting; needs no API key")
    add("--quiet", action="store_true", help="show no progress")
    add("--json", action="store_true", help="print the result as JSON on standard output")
    add("--version", action="version", version=__version__)
    return parser


def _between(least: int, most: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text) if re.fullmatch("[0-9]{1,9}", text) else least - 1
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"must be a number from {least} to {most}")
        return value

    return number


def _encoding(text: str) -> str:
    try:
        b"a".decode(text)
    except UnicodeError:
        pass  # it has more than one byte per character
    except LookupError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a known encoding; examples are utf-8, utf-16, cp1252"
        ) from None
    return text


def _delimiter(text: str) -> str:
    character = {"tab": "\t", "\\t": "\t"}.get(text, text)
    if len(character) != 1 or character in '"\r\n\0' or character.isalnum():
        raise argparse.ArgumentTypeError("must be one character that is not a letter, digit or quotation mark, or tab")
    return character


def _format_of(name: str) -> str:
    suffix = Path(name).suffix.lower()
    if name == "-" or suffix in (".jsonl", ".ndjson"):
        return "jsonl"
    if suffix == ".csv":
        return "csv"
    raise UsageError(f"{name}: set --format to jsonl or csv")


def _amqp_url(parsed: argparse.Namespace, env: Mapping[str, str]) -> str | None:
    """Return the URL of RabbitMQ, None for HTTP. Raises UsageError."""
    over_http = parsed.base_url or parsed.api_key_file
    if parsed.amqp_url and over_http:
        raise UsageError("set either --amqp-url, or --base-url and --api-key-file")
    url: str | None = parsed.amqp_url or (None if over_http else env.get("ASG_AMQP_URL")) or None
    if parsed.customer is not None and url is None and not parsed.dry_run:
        raise UsageError(
            "--customer is for RabbitMQ, so it needs --amqp-url: over HTTP, the API key names the customer"
        )
    return url


def _api_key(path: str | None, env: Mapping[str, str]) -> str:
    if path is not None:
        try:
            return Path(path).read_text().strip()
        except OSError as error:
            raise UsageError(f"--api-key-file {path}: {error.strerror}") from None
        except ValueError:
            raise UsageError(f"--api-key-file {path}: the file is not text") from None
    key = env.get("ASG_API_KEY") or env.get("API_KEY")
    if not key:
        raise UsageError(
            "set ASG_API_KEY (or API_KEY) to the API key, or --api-key-file to a file; for RabbitMQ, set ASG_AMQP_URL"
        )
    return key
