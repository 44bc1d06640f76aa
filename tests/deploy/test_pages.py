"""The README files and deploy/*.md: everything that they link to, name and run exists and works.

More checks are in tests/unit/test_documents.py.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from asg_gateway import __all__ as sdk_names
from typer.main import get_command

from ingest.cli import app
from tests.deploy.files import DEPLOY, ROOT, load
from tests.e2e.processes import Ingest
from tests.servers import RabbitServer

PAGES = [
    *(ROOT / name for name in ("README.md", "ingest/README.md", "ingest/sdk/README.md")),
    *(ROOT / name for name in ("tests/bench/README.md", "tests/chaos/README.md")),
    *sorted(DEPLOY.glob("*.md")),
]
TEXTS = {str(page.relative_to(ROOT)): page.read_text() for page in PAGES}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.+?)^```", text, re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """To a file, and in it to a heading."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text()), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_named_exist(page: Path) -> None:
    """`scripts/x`, `deploy/x`, `tests/x` and `ingest/x` in code."""
    for name in re.findall(r"`((?:scripts|deploy|tests|ingest)/[\w./-]+)`", page.read_text()):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_named_exist(page: Path) -> None:
    """Each `ingest VERB [VERB] [--option …]` is a command with that option."""
    for words in re.findall(
        r"(?:^|[`$] ?|bin/|run --rm shim )ingest ((?:[\w-]+|\||--[\w-]+)(?: [^`\n]+)?)", page.read_text(), re.MULTILINE
    ):
        command = get_command(app)
        given = words.split("  ")[0].split(" #")[0].split()
        if given[0] not in getattr(command, "commands"):  # noqa: B009 - typer's group is not typed
            assert not re.fullmatch(r"[a-z]+", given[0]), words
            continue
        while given and (found := getattr(command, "commands", {}).get(given[0])):
            command, given = found, given[1:]
        if getattr(command, "commands", None) and given and re.fullmatch(r"[a-z]+", given[0]):
            raise AssertionError(f"{page.name}: there is no `ingest {words}`")
        options = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        assert {each for each in given if each.startswith("--")} <= options, words


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with Ingest("dev", "--port", "0", "--api-key", "my-key", directory=tmp_path_factory.mktemp("pages")) as dev:
        dev.wait_for("Ctrl-C stops it")
        found = re.search(r"ready at (http://\S+)", dev.text())
        assert found
        yield found[1]


@pytest.mark.parametrize("name", ["README.md", "ingest/sdk/README.md"])
def test_the_clients_examples_run(name: str, gateway: str) -> None:
    """Python and curl, as they stand there but for the address and the key."""
    text = TEXTS[name].replace("http://127.0.0.1:8080", gateway)
    ran = 0
    for code in blocks(text, "python"):
        compile(code, name, "exec", flags=0x2000)  # PyCF_ALLOW_TOP_LEVEL_AWAIT
        if code.startswith("import"):
            output = run([sys.executable, "-c", code], {"API_KEY": "my-key", "ASG_BASE_URL": gateway})
            assert re.search("(tsk|bat)_", output)
            ran += 1
    for line in re.findall(r"^```\n(curl .+?)^```", text, re.MULTILINE | re.DOTALL):
        line = line.replace('"callback_url": "https://example.com/hooks/asg",', "")
        assert re.search('"(tsk|bat)_', run(["bash", "-c", line], {"API_KEY": "my-key"}))
        ran += 1
    assert ran >= 2
    for imported in re.findall(r"from asg_gateway import (.+)", text):
        assert set(imported.split(", ")) <= set(sdk_names)


def test_the_producers_example_runs(rabbitmq: RabbitServer, rabbitmq_url: str) -> None:
    """On a real broker, as a user with a producer's permissions; the message is where it says."""
    vhost = urlsplit(rabbitmq_url).path[1:]
    rabbitmq.api("POST", f"definitions/{vhost}", load(DEPLOY / "rabbitmq/definitions.json"))
    rabbitmq.api("PUT", "users/acme", {"password": "secret", "tags": ""})
    try:
        rabbitmq.api(
            "PUT", f"permissions/{vhost}/acme", {"configure": "^$", "write": "^asg[.]submissions$", "read": "^$"}
        )
        (code,) = blocks(TEXTS["deploy/producers.md"], "python")
        run([sys.executable, "-c", code], {"AMQP_URL": f"amqp://acme:secret@{rabbitmq_url.partition('@')[2]}"})
        got = rabbitmq.api(
            "POST", f"queues/{vhost}/ingest.tasks/get", {"count": 1, "ackmode": "ack_requeue_false", "encoding": "auto"}
        )
        assert got[0]["routing_key"] == "task.submitted.acme"
    finally:
        rabbitmq.api("DELETE", "users/acme")


def run(command: list[str], env: dict[str, str]) -> str:
    done = subprocess.run(command, env={"PATH": "/usr/bin:/bin", **env}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout
