"""The README files and deploy/*.md: links, files and commands in them exist, and their examples run.

More checks are in tests/unit/test_documents.py.
"""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from asg_gateway import __all__ as sdk_names
from typer.main import get_command

from ingest.cli import app
from tests.deploy.files import DEPLOY, ROOT, load_yaml
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
    """Return the anchors that GitHub makes from the headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_existing_files_and_headings(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text()), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_in_code_exist(page: Path) -> None:
    """Or git ignores them, because operators make them."""
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    for name in re.findall(r"`((?:scripts|deploy|tests|ingest)/[\w./-]+)`", page.read_text()):
        assert name in ignored or (ROOT / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_ingest_commands_and_their_options_exist(page: Path) -> None:
    for words in re.findall(
        r"(?:^|[`$] ?|bin/|run --rm shim )ingest ((?:[\w-]+|\||--[\w-]+)(?: [^`\n]+)?)", page.read_text(), re.MULTILINE
    ):
        command = get_command(app)
        given = words.split("  ")[0].split(" #")[0].split()
        if given[0] not in getattr(command, "commands"):  # noqa: B009 - typer's group is not typed
            assert not re.fullmatch(r"[a-z]+", given[0]), words
            continue
        while given and (subcommand := getattr(command, "commands", {}).get(given[0])):
            command, given = subcommand, given[1:]
        if getattr(command, "commands", None) and given and re.fullmatch(r"[a-z]+", given[0]):
            raise AssertionError(f"{page.name}: the command `ingest {words}` does not exist")
        options = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        assert {word for word in given if word.startswith("--")} <= options, words


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with Ingest("dev", "--port", "0", "--api-key", "my-key", directory=tmp_path_factory.mktemp("pages")) as dev:
        dev.wait_for("Ctrl-C stops it")
        match = re.search(r"ready at (http://\S+)", dev.text())
        assert match
        yield match[1]


@pytest.mark.parametrize("name", ["README.md", "ingest/sdk/README.md"])
def test_client_examples_in_python_and_curl_run(name: str, gateway: str) -> None:
    """Only the address is replaced, and a callback URL that nothing serves is left out."""
    text = TEXTS[name].replace("http://127.0.0.1:8080", gateway)
    examples = 0
    for code in blocks(text, "python"):
        compile(code, name, "exec", flags=0x2000)  # PyCF_ALLOW_TOP_LEVEL_AWAIT
        if code.startswith("import") and "asg_gateway.amqp" not in code:  # tests/integration/test_amqp_examples.py
            output = run([sys.executable, "-c", code], {"API_KEY": "my-key", "ASG_BASE_URL": gateway})
            assert re.search("(tsk|bat)_", output)
            examples += 1
    for line in re.findall(r"^```\n(curl .+?)^```", text, re.MULTILINE | re.DOTALL):
        line = line.replace('"callback_url": "https://example.com/hooks/asg",', "")
        assert re.search('"(tsk|bat)_', run(["bash", "-c", line], {"API_KEY": "my-key"}))
        examples += 1
    assert examples >= 2
    for names in re.findall(r"from asg_gateway import (.+)", text):
        assert set(names.split(", ")) <= set(sdk_names)


@pytest.mark.parametrize("page", ["deploy/producers.md", "ingest/sdk/README.md"])
def test_producer_example_publishes_a_task_with_the_permissions_of_a_producer(
    rabbitmq: RabbitServer, rabbitmq_url: str, page: str
) -> None:
    vhost = urlsplit(rabbitmq_url).path[1:]
    rabbitmq.api("POST", f"definitions/{vhost}", load_yaml(DEPLOY / "rabbitmq/definitions.json"))
    rabbitmq.api("PUT", "users/acme", {"password": "secret", "tags": ""})
    try:
        rabbitmq.api(
            "PUT", f"permissions/{vhost}/acme", {"configure": "^$", "write": "^asg[.]submissions$", "read": "^$"}
        )
        (code,) = [code for code in blocks(TEXTS[page], "python") if re.search(r"\.basic_publish\(|Producer\(", code)]
        run([sys.executable, "-c", code], {"AMQP_URL": f"amqp://acme:secret@{rabbitmq_url.partition('@')[2]}"})
        messages = rabbitmq.api(
            "POST", f"queues/{vhost}/ingest.tasks/get", {"count": 1, "ackmode": "ack_requeue_false", "encoding": "auto"}
        )
        assert messages[0]["routing_key"] == "task.submitted.acme"
        assert 0 <= time.time() - messages[0]["properties"]["timestamp"] < 60
    finally:
        rabbitmq.api("DELETE", "users/acme")


def run(command: list[str], env: dict[str, str]) -> str:
    """Run a command that must succeed, and return its output."""
    environment = {"PATH": "/usr/bin:/bin", **env}
    completed = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert completed.returncode == 0, completed.stderr
    return completed.stdout
