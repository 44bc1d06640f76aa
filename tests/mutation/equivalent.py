"""Mutants that no test can notice, with the reason."""

from typing import Final

EQUIVALENT: Final[dict[str, str]] = {
    "worker/processor.py DeliveryProcessor._publish_messages: return: dropped": (
        "if every message is confirmed, the rest of the function only logs"
    ),
    "worker/processor.py DeliveryProcessor._settle: if error is not None:: error is not None -> False": (
        "only a log line is missing"
    ),
    "shim/pipeline.py SubmissionPipeline.run: if decision.verdict is Verdict.REPLAY:: "
    "decision.verdict is Verdict.REPLAY -> False": "only a log line is missing",
    "worker/plan.py released_entries: if released:: released -> True": (
        "usually nothing is released, and then no fingerprints need to be computed"
    ),
}
"""Name of a mutant to the reason. The command reports names that do not exist any more, and mutants that are killed."""
