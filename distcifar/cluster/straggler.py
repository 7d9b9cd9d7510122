"""A rank that is slower than the others, which wait for it at every step: found and named.

A rank's own time of a step ends when its own gradient is there (training/step.py): waiting for others is no part of it.
SyncBatchNorm waits for others inside the network as well, so that with it nobody stands out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import Any

from distcifar.training.reports import OwnTime

SLOW = 1.5  # times the median of all ranks, from which on a rank is named
KEEPS_UP = 1.25  # times the median, below which it keeps up again: only then it can be named once more
LEAST_SECONDS = 0.005  # a step, that it must be behind: less is seldom felt, and often chance


@dataclass(frozen=True)
class Straggler:
    """A rank that the others wait for; both times are own times of a step."""

    rank: int
    own: OwnTime
    median: float  # of all ranks, in seconds

    def words(self, sample: Mapping[str, Any], *, balanced: bool) -> str:
        """What the user is told. sample: of its machine (hardware.py), if there is one; balanced: parts by speed."""
        host = f" on {sample['host']}" if "host" in sample else ""
        busy = f" (its cores are {sample['node_cpu_percent']:.0f} % busy)" if "node_cpu_percent" in sample else ""
        found = (
            f"rank {self.rank}{host} takes {1000 * self.own.step:.0f} ms a step of its own, the median is "
            f"{1000 * self.median:.0f} ms: the others wait for it. "
        )
        if self.own.data > self.own.step / 2:
            share = self.own.data / self.own.step
            return f"{found}{share:.0%} of that goes by before its images are there: look at its disk and cores{busy}"
        remedy = "its part was measured when the run began: without balance.json it is measured again at the next start"
        return f"{found}Look at what else runs there{busy}; {remedy if balanced else 'a smaller part: --balance on'}"


class Stragglers:
    """Who has been named and not kept up since."""

    def __init__(self) -> None:
        self._named: frozenset[int] = frozenset()

    def new(self, own: Sequence[OwnTime]) -> list[Straggler]:
        """Those of the ranks' times that are to be named now, the slowest first; () where too little is known."""
        if not own:
            return []
        # The lower of two in the middle: of two ranks the faster one, of two kinds of cards the faster kind.
        middle = median_low(each.step for each in own)
        slow = {rank for rank, each in enumerate(own) if is_slow(each.step, middle)}
        behind = {rank for rank in self._named if own[rank].step > KEEPS_UP * middle}
        fresh = slow - self._named
        self._named = frozenset(slow | behind)
        return sorted((Straggler(rank, own[rank], middle) for rank in fresh), key=lambda found: -found.own.step)


def is_slow(seconds: float, median: float) -> bool:
    """Whether a rank with that own time is to be named beside that median."""
    return seconds > SLOW * median and seconds - median > LEAST_SECONDS
