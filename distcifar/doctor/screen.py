"""Findings on the screen: problems first, each with why and remedy, then what is in order in short lines."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from distcifar.doctor.findings import Finding, worst_first

STYLES = {"error": "bold red", "warning": "bold yellow", "ok": "green"}
SIGNS = {"error": "✗", "warning": "!", "ok": "✓"}


def show(findings: list[Finding], console: Console) -> None:
    """All of them, worst first."""
    problems, healthy = Table.grid(padding=(0, 1)), Table.grid(padding=(0, 1))
    for finding in worst_first(findings):
        sign = Text(SIGNS[finding.level], STYLES[finding.level])
        if finding.level == "ok":
            healthy.add_row(sign, finding.check, Text(finding.what, "dim"))
        else:
            problems.add_row(sign, _told(finding))
    console.print(problems, healthy, ending(findings), sep="")


def _told(finding: Finding) -> Text:
    where = f" on {finding.where}" if finding.where else ""
    text = Text.assemble((f"{finding.check}{where}: ", STYLES[finding.level]), finding.what)
    return text.append(f"\nwhy: {finding.why}\n", "dim").append("fix: ", "dim").append(finding.remedy)


def ending(findings: list[Finding]) -> str:
    """How many of what, and what can be typed."""
    errors, warnings = (sum(finding.level == level for finding in findings) for level in ("error", "warning"))
    if not errors and not warnings:
        return "Healthy."
    fixable = sum(bool(finding.fix) for finding in findings)
    told = f"{errors} error(s), {warnings} warning(s)."
    return told + (f" --fix can mend {fixable} of them." if fixable else "")
