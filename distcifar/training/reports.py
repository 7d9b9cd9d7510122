"""What fit() yields: steps and epochs as rows of plain numbers, reduced over ranks."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import median_low
from typing import Any

import torch
from torch import Tensor

from distcifar.config import Recipe
from distcifar.data.loader import Batch
from distcifar.data.waiting import Moment, moment, seconds_between
from distcifar.training import metrics
from distcifar.training.divergence import Done, require_sound
from distcifar.training.metrics import Evaluation
from distcifar.training.state import TrainState
from distcifar.training.step import StepResult
from distcifar.world import World

Row = dict[str, Any]
REPORT_SECONDS = 0.5  # between two reports of a run
OWN_STEPS = 10  # of which a rank tells the median time


@dataclass
class Pace:
    """How many steps go between two reports: as many as take about `seconds`, the same number on every rank.

    The first report comes after one step and the number doubles at most: the first steps take long, and a NaN among
    them is to be found soon.
    """

    seconds: float = 0.0  # 0: a report after every step
    steps: int = 1

    def wanted(self, done: int, elapsed: float) -> int:
        """How many this rank would do next, after `done` steps in `elapsed` seconds."""
        return max(1, int(min(2 * self.steps, self.seconds * done / max(elapsed, 1e-9))))


@dataclass(frozen=True)
class OwnTime:
    """Seconds of a rank's usual step until its gradient is there: what it takes itself, without waiting for others."""

    step: float  # all of it, from asking for the batch on
    data: float  # until the batch is there


@dataclass
class OwnTimes:
    """A rank's last OWN_STEPS steps, also across epochs."""

    last: deque[OwnTime] = field(default_factory=lambda: deque(maxlen=OWN_STEPS))

    def over_ranks(self, world: World) -> Tensor:
        """float64 [2 x ranks], to be summed: this rank's medians at its place; 0 before so many steps are done."""
        found = torch.zeros(world.size, 2, dtype=torch.float64)
        if len(self.last) == OWN_STEPS:
            medians = [median_low(getattr(each, name) for each in self.last) for name in ("step", "data")]
            found[world.rank] = torch.tensor(medians)
        return found.flatten().to(world.device)


@dataclass(frozen=True)
class FitOptions:
    """How the loop talks to its caller; nothing here changes the numbers."""

    pace: Pace = field(default_factory=Pace)  # of reports: each makes the host wait for the device
    own: OwnTimes = field(default_factory=OwnTimes)
    ask_batches: int = 1  # batches of an evaluation between two questions whether to stop, which make it wait as well
    checkpoint_steps: int = 0  # ask for a checkpoint every N steps (0: only after epochs)
    should_stop: Callable[[], bool] = lambda: False  # asked on every rank; one True stops all at one step
    on_stage: Callable[[str, int], None] = lambda stage, step: None  # told where this rank is: signs of life
    microbatch: int = 0  # images in one forward pass of a rank: more are split and their gradients added (0: all)
    compile: bool = False

    def interrupted(self, batch: int, world: World) -> bool:
        """Whether a rank wishes to stop before batch `batch` of an evaluation. A collective, now and then."""
        self.on_stage("evaluate", batch)
        return batch % self.ask_batches == 0 and world.any(self.should_stop())


@dataclass(frozen=True)
class StepReport:
    """The steps since the last report, one row each; where `save`, a checkpoint is due now."""

    rows: list[Row]
    save: bool
    stopping: bool
    own: tuple[OwnTime, ...] = ()  # of each rank; none before each has done OWN_STEPS steps


@dataclass(frozen=True)
class EpochReport:
    """An epoch is over and measured."""

    row: Row
    evaluation: Evaluation | None
    improved: bool

    def metrics(self) -> dict[str, float]:
        """The row's numbers, as Ray takes them."""
        return {name: value for name, value in self.row.items() if isinstance(value, int | float)}


Report = StepReport | EpochReport


@dataclass
class StepLog:
    """Steps that were done and not yet reported; their tensors stay on the device until then."""

    steps_per_epoch: int
    device: torch.device
    done: list[Done] = field(default_factory=list)
    waits: list[tuple[Moment, Moment]] = field(default_factory=list)  # for batches, from when to when
    since: float = field(default_factory=time.monotonic)  # stands still while a laptop sleeps

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """`batches`, with the moments noted between which the device waits for each."""
        while True:
            start = moment(self.device)
            batch = next(batches, None)
            if batch is None:
                return
            self.waits.append((start, moment(self.device)))
            yield batch

    def add(self, state: TrainState, batch: Batch, result: StepResult) -> None:
        """Notes the step that `state` has just done."""
        progress = state.progress
        epoch = progress.epoch + progress.epoch_step / self.steps_per_epoch
        self.done.append(Done(progress.step, epoch, progress.lr, batch.total, result))

    def report(self, recipe: Recipe, state: TrainState, world: World, options: FitOptions, *, save: bool) -> StepReport:
        """One transfer from the device and one collective for all steps since the last report."""
        values = torch.stack([t for done in self.done for t in (done.result.loss, done.result.grad_norm)])
        losses, device_norms = values.view(-1, 2).unbind(1)
        norms = device_norms.tolist()
        elapsed = time.monotonic() - self.since  # also by the device's clock, which stands at this place now
        stop = losses.new_tensor([float(options.should_stop())])
        # The primary's clock says for all ranks when to report next.
        steps = world.only_primary(losses.new_tensor([float(options.pace.wanted(len(self.done), elapsed))]))
        own = self._own(options, world)
        # The epoch's sums go to rank 0 with the rest: a checkpoint made now is to hold those of all ranks.
        sums = world.sum(torch.cat([torch.cat([losses, stop, steps]).double(), own, state.tally.sums]))
        told = sums[:-3].tolist()
        *global_losses, stops, next_steps = told[: -len(own)]
        options.pace.steps = int(next_steps)
        state.tally.sums = world.only_primary(sums[-3:])
        require_sound(recipe, state, self.done, global_losses, norms)
        waited = sum(seconds_between(*wait) for wait in self.waits)
        state.progress.seconds += elapsed
        speed = sum(done.images for done in self.done) / max(elapsed, 1e-9)
        memory = memory_bytes(world.device)
        rows = [
            {
                "kind": "step",
                "step": done.step,
                "epoch": done.epoch,
                metrics.TRAIN_LOSS: loss,
                metrics.LEARNING_RATE: done.lr,
                metrics.GRADIENT_NORM: norm,
                metrics.IMAGES_PER_SECOND: speed,
                metrics.DATA_WAIT: min(1.0, waited / max(elapsed, 1e-9)),
                metrics.MEMORY: memory,
            }
            for done, loss, norm in zip(self.done, global_losses, norms, strict=True)
        ]
        self.done, self.waits, self.since = [], [], time.monotonic()
        of_ranks = told[-len(own) :]
        times = tuple(map(OwnTime, of_ranks[::2], of_ranks[1::2])) if all(of_ranks[::2]) else ()
        return StepReport(rows, save=save or stops > 0, stopping=stops > 0, own=times)

    def _own(self, options: FitOptions, world: World) -> Tensor:
        """OwnTimes.over_ranks, with the steps since the last report."""
        for (asked, given), done in zip(self.waits, self.done, strict=True):
            step, data = seconds_between(asked, done.result.ready), seconds_between(asked, given)
            options.own.last.append(OwnTime(step, data))
        return options.own.over_ranks(world)


def memory_bytes(device: torch.device) -> int:
    """Memory in use: the GPU's peak so far, or this process's resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resident_bytes()


def resident_bytes() -> int:
    """What of this process's memory is in RAM."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE")
