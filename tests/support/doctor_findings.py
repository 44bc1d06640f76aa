"""Searches for findings of `ingest doctor`."""

from ingest.domain.findings import Finding, Severity

ERROR, WARNING, OK = Severity.ERROR, Severity.WARNING, Severity.OK


def reports(findings: list[Finding], severity: Severity, text: str) -> bool:
    """Return whether there is such a finding. Unless it is OK, it must also say what to do."""
    return any(
        finding.severity is severity and text in finding.what and bool(finding.do) != (severity is OK)
        for finding in findings
    )


def errors(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.severity is ERROR]
