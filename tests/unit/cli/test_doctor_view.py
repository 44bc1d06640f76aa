"""What `ingest doctor` prints for people and for programs."""

import io

from rich.console import Console

from ingest.cli.doctor import print_findings
from ingest.domain.findings import error, ok, warning

ADVICE = "run `ingest topology apply` with INGEST_MANAGEMENT_URL"
COMMAND = "rabbitmqctl set_permissions -p tenants acme '^$' '^asg[.]submissions$' '^$'"
FINDINGS = [
    error("broker", "no policy is set for ingest.tasks, ingest.batches", ADVICE),
    ok("permissions", "administrators, who can act in any name: admin"),
    warning("broker", "only one RabbitMQ node", COMMAND),
]


def shown(width: int, *, terminal: bool) -> list[str]:
    output = io.StringIO()
    print_findings(
        Console(file=output, width=width, highlight=False, force_terminal=terminal, color_system=None), FINDINGS
    )
    return output.getvalue().splitlines()


def test_findings_of_an_area_are_together_and_counted() -> None:
    assert shown(40, terminal=False) == [
        "broker",
        "  error   no policy is set for ingest.tasks, ingest.batches",
        f"          → {ADVICE}",
        "  warning only one RabbitMQ node",
        f"          → {COMMAND}",
        "permissions",
        "  ok      administrators, who can act in any name: admin",
        "",
        "1 error, 1 warning, 1 fine",
    ]


def test_narrow_terminal_breaks_lines_between_words_but_not_in_a_command_to_copy() -> None:
    assert shown(40, terminal=True)[1:7] == [
        "  error   no policy is set for",
        "          ingest.tasks, ingest.batches",
        "          → run `ingest topology apply`",
        "            with INGEST_MANAGEMENT_URL",
        "  warning only one RabbitMQ node",
        f"          → {COMMAND}",
    ]
