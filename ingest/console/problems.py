"""Links from the problems of the overview to the pages that help with them."""

import re
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlencode

import msgspec

from ingest.domain import topology
from ingest.domain.display import shown
from ingest.domain.identity import is_submission_id
from ingest.domain.overview import DeadReason, Problem

_ID: Final = re.compile(r"\b((?:tsk|bat)_[0-9a-z]+)\b")
_MOST_REASONS: Final = 5
"""Reasons of dead letters that a problem links to, those with the most dead letters first."""


class Part(msgspec.Struct, frozen=True):
    """A part of a sentence, without secrets and control characters; a link if `href` is not empty."""

    text: str
    href: str = ""


def linked(problem: Problem, dead: Sequence[DeadReason]) -> list[Part]:
    """Return the sentence of a problem with links: ids lead to Find, and dead letters to their pages.

    Args:
        problem: a problem of the overview.
        dead: the dead letters by reason, as far as they are known.
    """
    parts = [
        Part(text, f"/find?{urlencode({'q': text})}" if is_submission_id(text) else "")
        for text in _ID.split(shown(problem.text))
        if text
    ]
    if problem.queue == topology.INGEST_DEAD:
        most = sorted((group for group in dead if group.reason), key=lambda group: -group.count)[:_MOST_REASONS]
        reasons = [Part(shown(group.reason), f"/dead/list?{urlencode({'reason': group.reason})}") for group in most]
        parts.append(Part(", or see "))
        for reason in reasons:
            parts += [reason, Part(", ")]
        parts.append(Part("all" if reasons else "them", "/dead"))
    return parts
