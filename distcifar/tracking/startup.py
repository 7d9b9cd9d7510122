"""startup.json: where the time goes from the command to the end of a launch's first optimizer step.

Marks are the ends of stages, one after the other, on the clock that all processes of a machine share and that their own
starts are told in: seconds since it booted. Marks that come from another machine are moved by the difference of the two
wall clocks; on one machine no wall clock is asked, as it may jump.
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

FILE = "startup.json"
TOLD_AS = {"data": "first batch", "step": "first step"}  # how the engine's stages are told


@dataclass(frozen=True)
class Marks:
    """When a command began, and when each of its stages so far had ended; a value that travels to other processes."""

    boot: str  # names the machine and its clock
    zero: float  # the wall clock, in seconds, when the machine's clock stood at zero
    start: float  # on the machine's clock
    ends: tuple[tuple[str, float], ...] = ()

    @classmethod
    def of_this_process(cls) -> "Marks":
        """Begins at the start of this process, to a hundredth of a second: the interpreter's own start counts."""
        return replace(_here(), start=_process_start())

    def ended(self, stage: str) -> "Marks":
        """These and, as of now, the end of `stage`; on the clock of the machine that asks."""
        return self.seen_from(_here()).at(stage, _now())

    def at(self, stage: str, moment: float) -> "Marks":
        """These and the end of `stage` at `moment` of their clock."""
        return replace(self, ends=(*self.ends, (stage, moment)))

    def seen_from(self, other: "Marks") -> "Marks":
        """These on the clock of the machine that made `other`."""
        if other.boot == self.boot:
            return self
        shift = self.zero - other.zero
        ends = tuple((stage, moment + shift) for stage, moment in self.ends)
        return Marks(other.boot, other.zero, self.start + shift, ends)

    def stages(self) -> dict[str, float]:
        """Seconds of each stage by name, in order; one that came twice (a first step that failed) has the sum.

        They are not negative and add up to the time from the start to the last mark, also where clocks disagree.
        """
        found: dict[str, float] = {}
        reached = self.start
        for stage, moment in self.ends:
            found[stage] = found.get(stage, 0.0) + max(0.0, moment - reached)
            reached = max(reached, moment)
        return found


class FirstStep:
    """Follows one rank to the end of its first step, and then tells its marks, once.

    wait: returns when the device has done what it was given. tell: is given the marks.
    """

    def __init__(self, marks: Marks, wait: Callable[[], None], tell: Callable[[Marks], None]) -> None:
        self._marks, self._wait, self._tell = marks, wait, tell
        self._stage, self._over = "", False

    def ended(self, stage: str) -> None:
        """A stage before the training loop is over."""
        if not self._over:
            self._marks, self._stage = self._marks.ended(stage), ""

    def enter(self, stage: str) -> None:
        """The training loop enters a stage ("data", "step", ...), which ends the one before. Costs an `if`."""
        if self._over:
            return
        before, self._stage = self._stage, stage
        if before == "step":
            self._wait()
        if before:
            self._marks = self._marks.ended(TOLD_AS.get(before, before))
        if before == "step":
            self._over = True
            self._tell(self._marks)


def describe(marks: Marks, launch: str, workers: int) -> dict[str, Any]:
    """The content of startup.json. launch: the name of this start of the run."""
    stages = marks.stages()
    return {
        "launch": launch,
        "workers": workers,
        "stages": [{"name": name, "seconds": round(seconds, 3)} for name, seconds in stages.items()],
        "total": round(sum(stages.values()), 3),
    }


def read_startup(folder: Path) -> dict[str, Any] | None:
    """startup.json of a run directory as `describe` made it; None where no launch has come to its first step."""
    try:
        found = json.loads((folder / FILE).read_text())
    except (FileNotFoundError, ValueError):
        return None  # `write_json` leaves no half of a file: what cannot be read is not ours
    return found if isinstance(found, dict) and {"launch", "workers", "stages", "total"} <= found.keys() else None


def in_a_line(startup: dict[str, Any]) -> str:
    """For the screen: "imports 0.4 s, torch 1.3 s, ..."."""
    return ", ".join(f"{stage['name']} {stage['seconds']:.1f} s" for stage in startup["stages"])


def _here() -> Marks:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    now = _now()
    return Marks(boot, time.time() - now, now)


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _process_start() -> float:
    """Seconds from the machine's boot to this process's start: the 22nd field of its stat, in clock ticks."""
    stat = Path("/proc/self/stat").read_text()
    fields = stat.rpartition(")")[2].split()  # from the third on: the second is a name, maybe with spaces
    return int(fields[22 - 3]) / os.sysconf("SC_CLK_TCK")
