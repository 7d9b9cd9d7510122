"""Samples of a run's machines (system.jsonl) as metrics of W&B's rows."""

import math
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distcifar.tracking.rows import Tail, inode_of, opened, readable


class HardwareSamples:
    """Gives each sample to the first row at or after its step; of several the newest."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "system.jsonl"
        self._tail: Tail | None = None
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
        thinned = self._tail is not None and inode_of(self._path) != self._tail.inode
        if self._tail is None or thinned:
            self._tail = opened(self._path)
        new = list(readable(self._tail.lines())) if self._tail else []
        if thinned and self._told in new:
            new = new[new.index(self._told) + 1 :]
        elif thinned and self._told:  # it went with the others
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
