"""Where the problems of the overview lead to."""

from ingest.console.problems import Part, linked
from ingest.domain import topology
from ingest.domain.overview import DeadReason, Problem

TASK_ID = "tsk_1xvaxkbhpkh25tv4swsfnt6pj7"
DEAD = Problem("42 dead letters: run `ingest dlq list`", topology.INGEST_DEAD)


def sentence(parts: list[Part]) -> str:
    return "".join(part.text for part in parts)


def links(parts: list[Part]) -> dict[str, str]:
    return {part.text: part.href for part in parts if part.href}


def test_dead_letters_lead_to_their_reasons_most_frequent_first_and_to_all() -> None:
    parts = linked(DEAD, [DeadReason(reason="invalid", count=2), DeadReason(reason="a&b<c>", count=40)])
    assert sentence(parts) == "42 dead letters: run `ingest dlq list`, or see a&b<c>, invalid, all"
    assert links(parts) == {
        "a&b<c>": "/dead/list?reason=a%26b%3Cc%3E",
        "invalid": "/dead/list?reason=invalid",
        "all": "/dead",
    }


def test_dead_letters_whose_reasons_are_unknown_lead_to_all() -> None:
    parts = linked(DEAD, [])
    assert sentence(parts) == "42 dead letters: run `ingest dlq list`, or see them"
    assert links(parts) == {"them": "/dead"}


def test_many_reasons_are_not_all_named() -> None:
    parts = linked(DEAD, [DeadReason(reason=f"r{number}", count=number) for number in range(50)])
    assert list(links(parts)) == ["r49", "r48", "r47", "r46", "r45", "all"]


def test_id_in_a_problem_leads_to_find() -> None:
    parts = linked(Problem(f"{TASK_ID}, tsk_short and ({TASK_ID}) wait"), [])
    assert sentence(parts) == f"{TASK_ID}, tsk_short and ({TASK_ID}) wait"
    assert [part.href for part in parts if part.href] == [f"/find?q={TASK_ID}"] * 2


def test_problem_of_another_queue_has_no_link() -> None:
    assert links(linked(Problem("ingest.tasks: 1 message and no consumer", "ingest.tasks"), [])) == {}


def test_secrets_are_hidden_and_control_characters_are_escaped() -> None:
    (part,) = linked(Problem("amqp://user:secret@host \x1b[31m"), [])
    assert part == Part("amqp://user:***@host \\x1b[31m")
