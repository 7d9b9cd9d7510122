"""What was measured: lines of values, one per round, compared with a baseline; and the JSON document of a benchmark."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from distcifar.cluster.facts import collect_facts
from distcifar.config import RunSpec

SCHEMA = 1
MACHINE = ("git_commit", "python", "packages", "hardware")  # of the facts that a run notes too


@dataclass(frozen=True)
class Line:
    """One side of a comparison: what each round gave."""

    name: str
    values: tuple[float, ...]
    x: float | None = None  # where it lies on a curve: images, workers, epochs
    curve: str = ""  # which one
    parts: Mapping[str, float] = field(default_factory=dict)  # of which the median is made up, in order

    @property
    def median(self) -> float:
        """The median over the rounds."""
        return statistics.median(self.values)


@dataclass(frozen=True)
class Goal:
    """What is promised: that `line` is at least so many times as good as `than`."""

    line: str
    than: str
    at_least: float


@dataclass(frozen=True)
class Comparison:
    """Lines of one kind and unit. Their ratios to the baseline say how many times better they are."""

    title: str
    unit: str
    lines: tuple[Line, ...]
    baseline: str = ""
    more_is_better: bool = True
    goals: tuple[Goal, ...] = ()
    notes: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)  # for other programs

    def line(self, name: str) -> Line:
        """The line of that name."""
        return next(line for line in self.lines if line.name == name)

    def ratio(self, name: str, than: str) -> float:
        """How many times better `name` is: the median over the rounds of the ratio within each.

        What slows a round slows both sides of it. Lines of different lengths: the ratio of their medians.
        """
        ours, theirs = self.line(name), self.line(than)
        pairs = list(zip(ours.values, theirs.values, strict=False))
        if len(ours.values) != len(theirs.values):
            pairs = [(ours.median, theirs.median)]
        return statistics.median(a / b if self.more_is_better else b / a for a, b in pairs)

    def to_json(self) -> dict[str, Any]:
        """All of it, with medians, ratios, and whether the goals were reached."""
        return {
            "title": self.title,
            "unit": self.unit,
            "more_is_better": self.more_is_better,
            "baseline": self.baseline,
            "lines": [
                {
                    "name": line.name,
                    "median": line.median,
                    "lowest": min(line.values),
                    "highest": max(line.values),
                    "values": list(line.values),
                    **({"ratio": self.ratio(line.name, self.baseline)} if self.baseline else {}),
                    **({"x": line.x, "curve": line.curve} if line.x is not None else {}),
                    **({"parts": dict(line.parts)} if line.parts else {}),
                }
                for line in self.lines
            ],
            "goals": [{**vars(goal), **self.judged(goal)} for goal in self.goals],
            "notes": list(self.notes),
            "facts": dict(self.facts),
        }

    def judged(self, goal: Goal) -> dict[str, Any]:
        """The ratio found, and whether it reaches the goal."""
        found = self.ratio(goal.line, goal.than)
        return {"found": found, "reached": found >= goal.at_least}


def lines_of(values: Mapping[str, Sequence[float]]) -> tuple[Line, ...]:
    """A line for each name."""
    return tuple(Line(name, tuple(found)) for name, found in values.items())


def document(what: str, arguments: Mapping[str, Any], comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """The JSON of a benchmark: what was asked for, on which machine and code, and what was found."""
    facts = collect_facts(RunSpec(), Path(), "")
    return {
        "schema": SCHEMA,
        "benchmark": what,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **{name: facts[name] for name in MACHINE},
        "arguments": dict(arguments),
        "comparisons": [comparison.to_json() for comparison in comparisons],
    }
