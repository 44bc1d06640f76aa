"""The result as text: the table, each fault with its proof and how long recovery took, and what is broken."""

from tests.chaos.checker import Result
from tests.chaos.history import History


def text(history: History, result: Result, seed: int, seconds: float) -> str:
    attempts = sum(len(each.attempts) for each in history.submissions)
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
        "In tasks. duplicated: events that came more than once, under one id; recovered: accepted, though the client",
        f"had no answer. Refused for quota: {result.refused}. Charged beyond what was accepted: {result.overcharged}.",
        f"Processes restarted after kills: {history.restarts}; peak memory (MiB): {_peaks(history)};",
        f"most deliveries in flight in one worker: {history.most}.",
        "",
        "| fault | at | lasted | recovered after | proof |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for each in history.faults:
        recovery = "**never**" if each.recovery is None else f"{each.recovery:.1f} s"
        proof = each.proof if each.shown else f"**NOT SHOWN**: {each.proof}"
        lines.append(f"| {each.name} | {each.at:.0f} s | {each.lasted:.1f} s | {recovery} | {proof} |")
    lines.append("")
    lines += [f"BROKEN: {sentence}" for sentence in result.broken[:40]]
    lines.append("every invariant holds" if not result.broken else f"{len(result.broken)} invariants broken")
    return "\n".join(lines)


def _peaks(history: History) -> str:
    return ", ".join(f"{name} {peak}" for name, peak in sorted(history.peak_memory.items()))
