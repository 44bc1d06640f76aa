"""Mutants that no test can notice, with the reason."""

from typing import Final

EQUIVALENT: Final[dict[str, str]] = {}
"""Name of a mutant to the reason. The command reports names that do not exist any more, and mutants that are killed."""
