"""What a check has found: its level, what was seen, why it matters, how to mend it."""

import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

Level = Literal["ok", "warning", "error"]
Facts = dict[str, Any]
SEVERITY: dict[Level, int] = {"error": 0, "warning": 1, "ok": 2}


@dataclass(frozen=True)
class Finding:
    """One check's answer. `fix` names what --fix can do about it (fixes.py); `where` is another machine's name."""

    check: str
    level: Level
    what: str
    why: str = ""
    remedy: str = ""
    fix: str = ""
    where: str = ""


# A check's parameters name the sections of facts that it reads.
Check = Callable[..., Iterator[Finding]]


def ok(check: str, what: str) -> Finding:
    """Nothing to do."""
    return Finding(check, "ok", what)


def warning(check: str, what: str, why: str, remedy: str, fix: str = "") -> Finding:
    """Works, but slower, less safely or not much longer."""
    return Finding(check, "warning", what, why, remedy, fix)


def error(check: str, what: str, why: str, remedy: str, fix: str = "") -> Finding:
    """Does not work, or is open to others."""
    return Finding(check, "error", what, why, remedy, fix)


def exit_code(findings: Iterable[Finding]) -> int:
    """1 where there is an error, else 0."""
    return int(any(finding.level == "error" for finding in findings))


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """By level; within a level as they came."""
    return sorted(findings, key=lambda finding: SEVERITY[finding.level])


def findings_of(facts: Facts, checks: Iterable[Check]) -> list[Finding]:
    """What `checks` say of `facts`. A check is left out where a section that it reads was not gathered.

    A section that could not be gathered is {"problem": reason}: that is told once, as a warning.
    """
    found = [_not_seen(name, told["problem"]) for name, told in facts.items() if _problem(told)]
    for check in checks:
        sections = inspect.signature(check).parameters
        if all(name in facts and not _problem(facts[name]) for name in sections):
            found += check(**{name: facts[name] for name in sections})
    return found


def _problem(section: Any) -> bool:
    return isinstance(section, dict) and "problem" in section


def _not_seen(section: str, problem: str) -> Finding:
    why = "What could not be looked at may be broken too"
    return warning(section, f"could not be looked at: {problem}", why, "Mend what the message names, and look again")
