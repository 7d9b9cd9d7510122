"""Whether a long training keeps files, threads or memory: FFCV does where an epoch is left early (issues 345, 393)."""

import os
import threading
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from distcifar.config import Recipe
from distcifar.data.loader import Loaders
from distcifar.training.engine import fit
from distcifar.training.reports import EpochReport, resident_bytes
from distcifar.training.state import TrainState
from distcifar.world import World

WARM_UP_SHARE = 0.25  # of the epochs: caches and allocators fill


@dataclass(frozen=True)
class Usage:
    """What this process holds."""

    files: int
    threads: int
    resident_bytes: int


@dataclass(frozen=True)
class Growth:
    """How that changed from the end of the warm-up to the last epoch."""

    files: int
    threads: int
    bytes_per_epoch: float  # slope of a straight line through the resident set


def usage() -> Usage:
    """Now. Threads are the kernel's count: FFCV's and numba's too."""
    files, threads = len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
    assert threads >= threading.active_count()
    return Usage(files, threads, resident_bytes())


def train_with_exits(recipe: Recipe, state: TrainState, loaders: Loaders, world: World) -> list[Usage]:
    """Trains to the end, leaving each epoch once in its middle and taking it up there; the usage after each epoch."""
    found, middle = [], loaders.train.steps_per_epoch // 2
    while not state.progress.outcome:
        with closing(fit(recipe, state, loaders, world)) as reports:  # type: ignore[type-var]  # a generator
            for report in reports:
                if isinstance(report, EpochReport):
                    found.append(usage())
                elif state.progress.epoch_step == middle:
                    break
    return found


def growth(found: Sequence[Usage]) -> Growth:
    """What grew after the warm-up."""
    rest = found[int(WARM_UP_SHARE * len(found)) :]
    slope = np.polyfit(range(len(rest)), [each.resident_bytes for each in rest], 1)[0]
    return Growth(rest[-1].files - rest[0].files, rest[-1].threads - rest[0].threads, float(slope))
