"""docs/reliability.md: what was tried, what came of it, what was lost, and how long it took to go on."""

import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import groupby
from pathlib import Path
from statistics import median

TEXT = """# Reliability, as tried

Made by `make chaos` on {day}, {machine}. Each line is a fault that was
brought upon real runs; every run was then compared with one that nothing had happened to. "Work lost" is what had to be
computed again (steps of the optimizer), "time to go on" the time from the fault to the next new step, process starts
included.

| fault | tried | as promised | outcome | work lost: median, most | time to go on: median, most |
|---|---:|---:|---|---|---|
{rows}
"""


@dataclass(frozen=True)
class Trial:
    """One fault and what came of it. `kept`: whether the promise (the outcome's text) was kept."""

    fault: str
    outcome: str
    kept: bool
    lost_steps: int | None = None
    seconds: float | None = None


def write_table(path: Path, trials: Sequence[Trial]) -> None:
    """Writes the table over `path`."""
    order = list(dict.fromkeys(trial.fault for trial in trials))
    ranked = sorted(trials, key=lambda trial: order.index(trial.fault))
    rows = [_row(fault, list(group)) for fault, group in groupby(ranked, key=lambda trial: trial.fault)]
    machine = f"{len(os.sched_getaffinity(0))} cores of {_processor()}, Python {platform.python_version()}, no GPU"
    text = TEXT.format(day=date.today(), machine=machine, rows="\n".join(rows))
    path.write_text(text)


def _row(fault: str, trials: list[Trial]) -> str:
    outcomes = "; ".join(dict.fromkeys(trial.outcome for trial in trials))
    lost = _spread([trial.lost_steps for trial in trials], "{:.0f} steps", "{:.0f}")
    seconds = _spread([trial.seconds for trial in trials], "{:.1f} s", "{:.1f} s")
    return f"| {fault} | {len(trials)} | {sum(t.kept for t in trials)} | {outcomes} | {lost} | {seconds} |"


def _spread(values: Iterable[float | None], first: str, second: str) -> str:
    known = [value for value in values if value is not None]
    return f"{first.format(median(known))}, {second.format(max(known))}" if known else ""


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
