"""Renders the result as text: the counts, each fault with its proof and recovery time, and the broken invariants."""

from tests.chaos.checker import Result
from tests.chaos.history import History


def text(history: History, result: Result, seed: int, seconds: float) -> str:
    attempts = sum(len(submission.attempts) for submission in history.submissions)
    sent = (
        f"{len(history.submissions):,} submissions, {attempts:,} attempts, {history.replayed} keys replayed at the end"
    )
    figures = (
        f"{result.attempted:,} | {result.accepted:,} | {len(result.lost)} | {len(result.unexpected)} | "
        f"{result.duplicated} | {result.recovered}"
    )
    lines = [
        "",
        f"seed {seed}, {seconds:.0f} s, {sent}",
        "",
        "| attempted | accepted | lost | unexpected | duplicated | recovered |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
        f"| {figures} |",
        "",
        "The figures are tasks. duplicated: events that were delivered more than once under one id;",
        "recovered: accepted although the client got no answer.",
        f"Rejected for an exhausted quota: {result.rejected}. Charged beyond what was accepted: {result.overcharged}.",
        *([f"Accepted in a split of Aerospike and not charged: {result.undercharged}."] if history.splits else []),
        f"Processes restarted: {history.restarts}; peak memory (MiB): {_peaks(history)};",
        f"most deliveries in flight in one worker: {history.peak_in_flight}.",
        f"Delivered in bundles: {history.bundled:,} submissions.",
        "",
        "| fault | at | lasted | recovered after | proof |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for injected in history.faults:
        recovery = "**never**" if injected.recovery is None else f"{injected.recovery:.1f} s"
        proof = injected.proof if injected.shown else f"**NOT SHOWN**: {injected.proof}"
        lines.append(f"| {injected.name} | {injected.at:.0f} s | {injected.lasted:.1f} s | {recovery} | {proof} |")
    lines.append("")
    lines += [f"BROKEN: {sentence}" for sentence in result.broken[:40]]
    lines.append("every invariant holds" if not result.broken else f"{len(result.broken)} invariants broken")
    return "\n".join(lines)


def _peaks(history: History) -> str:
    return ", ".join(f"{name} {peak}" for name, peak in sorted(history.peak_memory.items()))
