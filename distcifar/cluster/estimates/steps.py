"""A few steps and evaluations of a recipe on this machine, timed as a training does them; nothing of it is kept.

In this process, or on several ranks in as many processes of this machine, which then all-reduce as a training does.
"""

import math
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.distributed as dist

from distcifar.cluster.estimates.counts import workload
from distcifar.cluster.estimates.estimate import Figures, Workload, counted_bytes, phases
from distcifar.cluster.time_model import Observation, fit_step_time
from distcifar.cluster.worker import set_up_torch
from distcifar.config import Recipe, RunSpec, ScheduleConfig
from distcifar.data.build import OpenData, open_data
from distcifar.data.loader import Loaders
from distcifar.data.prepare import PreparedData
from distcifar.tracking.startup import Marks
from distcifar.training.build import build_state, first_images
from distcifar.training.engine import fit
from distcifar.training.evaluate import evaluate
from distcifar.training.precision import resolve_precision
from distcifar.training.reports import REPORT_SECONDS, EpochReport, FitOptions, Pace
from distcifar.training.state import Progress, TrainState
from distcifar.world import World

EPOCHS = 100_000  # of the trial, which is left soon: each share of a training is near the beginning of one
WARM_UP_STEPS, LEAST_STEPS, LEAST_SECONDS = 2, 3, 1.0
EVALUATED_BATCHES = 4
RATE = 1e-6  # so low that nothing diverges; the arithmetic is the same
# Times a look at image and mirror image. shift looks six times where the net is in doubt: after short trainings nearly
# everywhere, and after long ones evaluations are a small part.
LOOKS = {"none": 1.0, "flip": 1.0, "shift": 3.0}
MEETING_SECONDS = 120.0


@dataclass(frozen=True)
class Trial:
    """What is tried, and how."""

    recipe: Recipe
    spec: RunSpec
    data: PreparedData
    ranks: int  # of the training, each of which has its share of a batch
    together: int  # of the trial: as many, or one where the machine has no room for them
    threads: int  # of each
    startup: Marks

    @property
    def batch(self) -> int:
        """Images in a step of the trial: as many a rank as in the training."""
        whole = min(self.recipe.batch_size, self.data.manifest.num_samples)
        return math.ceil(whole * self.together / self.ranks)


def measured_here(trial: Trial) -> tuple[Workload, Figures]:
    """What the first rank has found. Raises what a training would: ResourceError, DataError, ConfigError."""
    if trial.together == 1:
        return _measured(trial, World(device=_device(trial.spec, 0)))
    with (
        tempfile.TemporaryDirectory(prefix="distcifar-trial-") as folder,
        # Spawned: this process has threads, which a fork would leave behind.
        ProcessPoolExecutor(trial.together, mp_context=get_context("spawn")) as pool,
    ):
        ranks = [pool.submit(_rank, trial, rank, Path(folder) / "rendezvous") for rank in range(trial.together)]
        found = [rank.result() for rank in ranks]
        return found[0]


def _rank(trial: Trial, rank: int, meeting: Path) -> tuple[Workload, Figures]:
    world = World(rank, trial.together, _device(trial.spec, rank))
    dist.init_process_group(
        "nccl" if world.device.type == "cuda" else "gloo", init_method=f"file://{meeting}", rank=rank,
        world_size=world.size, timeout=timedelta(seconds=MEETING_SECONDS),
    )  # fmt: skip
    try:
        return _measured(trial, world)
    finally:
        dist.destroy_process_group()


def _device(spec: RunSpec, index: int) -> torch.device:
    if spec.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def _measured(trial: Trial, world: World) -> tuple[Workload, Figures]:
    recipe, spec = trial.recipe, trial.spec
    set_up_torch(spec, trial.threads, world.device)
    data = open_data(recipe, trial.data.folder, world, mode=spec.loader, threads=spec.loader_threads or trial.threads)
    state = build_state(recipe, data, trial.data.digest, world)
    images = first_images(data, trial.batch)
    state.set_precision(resolve_precision(recipe.precision, state.model, images, world))
    watch = Stopwatch(trial, state, data, world)
    whole = watch.step(trial.batch)
    half = watch.step(max(1, trial.batch // 2))
    work = workload(trial.data, state, images, resident=data.mode == "resident")
    paces = (1.0, *(watch.step(trial.batch, moment) / whole for moment in phases(recipe)[1:]))
    looked = watch.evaluated_image()
    # What all ranks take together, all-reduce included, is told as one rank's.
    step = fit_step_time(
        Observation(seconds, 1, math.ceil(batch / trial.together), 0.0)
        for batch, seconds in ((trial.batch, whole), (max(1, trial.batch // 2), half))
    )
    peak = _peak_bytes()
    used = torch.cuda.max_memory_allocated(world.device) if world.device.type == "cuda" else peak
    counted = counted_bytes(recipe, work, math.ceil(trial.batch / trial.together), spec.microbatch)
    return work, Figures(
        step=step,
        paces=paces,
        evaluation=looked,
        first=max(0.0, watch.first - whole),
        start=sum(watch.startup.stages().values()) if trial.ranks == 1 else None,  # Ray starts several workers
        overhead_bytes=max(0.0, used - counted),
        host_bytes=float(peak),
        precision=state.progress.precision,
        network=trial.together == trial.ranks,
    )


@dataclass
class Stopwatch:
    """Times steps and evaluations of one state. Each method is a collective."""

    trial: Trial
    state: TrainState
    data: OpenData
    world: World
    first: float = 0.0  # seconds of the very first step
    startup: Marks = field(init=False)  # until then

    def __post_init__(self) -> None:
        self.startup = self.trial.startup

    def step(self, batch: int, share: float = 0.0) -> float:
        """Seconds of a usual step with `batch` images at that share of the training."""
        self.state.progress = Progress(precision=self.state.progress.precision, epoch=math.ceil(share * EPOCHS))
        warming, steps, seconds = 0, 0, 0.0
        with closing(self._timed(batch)) as timed:  # type: ignore[type-var]  # a generator
            for count, taken in timed:
                if warming < WARM_UP_STEPS:
                    warming += count
                    continue
                steps, seconds = steps + count, seconds + taken
                if self.world.any(steps >= LEAST_STEPS and seconds >= LEAST_SECONDS):
                    break
        return seconds / steps

    def _timed(self, batch: int) -> Iterator[tuple[int, float]]:
        """The steps of each report, and what they took."""
        spec, recipe = self.trial.spec, endless(self.trial.recipe, batch)
        train = replace(self.data.loaders.train, batch_size=batch, drop_last=True, epochs=EPOCHS)
        loaders = Loaders(train, None, self.data.loaders.test, self.data.loaders.num_classes)
        options = FitOptions(Pace(REPORT_SECONDS), microbatch=spec.microbatch, compile=spec.compile == "on")
        with closing(fit(recipe, self.state, loaders, self.world, options)) as reports:  # type: ignore[type-var]
            while True:
                begun = time.perf_counter()
                report = next(reports)
                if isinstance(report, EpochReport):
                    continue
                taken = time.perf_counter() - begun
                if not self.first:
                    self.first, self.startup = taken, self.startup.ended("first step")
                yield len(report.rows), taken

    def evaluated_image(self) -> float:
        """Seconds of an image of an evaluation, by this rank."""
        recipe, loader = self.trial.recipe, self.data.loaders.validation or self.data.loaders.test
        seconds = 0.0
        for batches in (1, EVALUATED_BATCHES):  # once to warm up
            begun = time.perf_counter()
            evaluate(
                self.state.evaluated, loader, self.world, num_classes=self.data.manifest.num_classes,
                precision=self.state.progress.precision, views="none" if recipe.tta == "none" else "flip",
                interrupted=lambda number, _: number >= batches,  # noqa: B023  # called at once
            )  # fmt: skip
            seconds = time.perf_counter() - begun
        images = min(EVALUATED_BATCHES * loader.batch_size, math.ceil(loader.num_samples / self.world.size))
        return seconds / images * LOOKS[recipe.tta]


def endless(recipe: Recipe, batch: int) -> Recipe:
    """`recipe` with steps of `batch` images, as many as are wanted, that move nothing and are judged by nothing."""
    optim = replace(recipe.optim, lr=RATE, accumulate=min(recipe.optim.accumulate, batch))
    return replace(
        recipe, epochs=EPOCHS, then=(), early_stop=0, spike_factor=0.0, select_on="last", drop_last=True,
        batch_size=batch, schedule=ScheduleConfig(), optim=optim,
    )  # fmt: skip


def _peak_bytes() -> int:
    """The largest resident set of this process so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
