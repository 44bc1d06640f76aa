"""Where is my task? Looks for a submission in the ledger and in the dead letters."""

from ingest.operations.find.dead_letters import MAX_DEAD_LETTERS, found_dead_letter, search_queue
from ingest.operations.find.findings import Findings, FoundDeadLetter, FoundEntry, Matches, Search
from ingest.operations.find.search import find

__all__ = [
    "MAX_DEAD_LETTERS",
    "Findings",
    "FoundDeadLetter",
    "FoundEntry",
    "Matches",
    "Search",
    "find",
    "found_dead_letter",
    "search_queue",
]
