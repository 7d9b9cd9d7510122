"""Samples of a run's machines (system.jsonl) as metrics of W&B's rows."""

import math
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distcifar.tracking.system import read_system


class HardwareSamples:
    """Gives each sample to the first row at or after its step; of several the newest."""

    def __init__(self, folder: Path) -> None:
        self._path, self._folder = folder / "system.jsonl", folder
        self._size = -1
        self._told: dict[str, Any] = {}
        self._waiting: deque[dict[str, Any]] = deque()  # by step

    def until(self, step: int) -> dict[str, Any]:
        """The values that go out with the row of `step`."""
        self._look()
        due: dict[str, Any] | None = None
        while self._waiting and self._waiting[0]["step"] <= step:
            due = self._waiting.popleft()
        return hardware_values(due) if due else {}

    def _look(self) -> None:
        """Takes in what was added to the file: a line each ten seconds."""
        size = self._path.stat().st_size if self._path.exists() else 0
        if size == self._size:
            return
        self._size = size
        new = read_system(self._folder)
        if self._told in new:
            new = new[new.index(self._told) + 1 :]
        elif self._told:  # the file was thinned out, and this sample with it
            new = new[-1:]
        if new:
            self._told = new[-1]
            self._waiting = deque(sorted([*self._waiting, *new], key=lambda sample: sample["step"]))


def hardware_values(sample: Mapping[str, Any]) -> dict[str, Any]:
    """A line of system.jsonl as hardware/rankN/NAME."""
    return {
        f"hardware/rank{rank['rank']}/{name}": value
        for rank in sample["ranks"]
        for name, value in rank.items()
        if name != "rank" and isinstance(value, int | float) and math.isfinite(value)
    }
