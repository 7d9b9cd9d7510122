"""What a training will take, before it starts: time, memory and disk, from counts and from what was measured.

Pure: counts (Workload) come from the net and its data, times (Figures) from a few steps (trial_steps.py). A step's time
is StepTime's. What is computed between the steps of an epoch is not counted, nor are checkpoints, which are written
beside the training.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from distcifar.cluster.time_model import StepTime
from distcifar.config import Recipe, RunSpec

FLOAT_BYTES = 4
ROW_BYTES = 390  # of a step's row in metrics.jsonl and metrics.csv: a million are 386 MB (docs/performance.md)
SYSTEM_BYTES, SYSTEM_SECONDS, SYSTEM_LINES = 300, 10.0, 20_000  # a rank's sample in system.jsonl, thinned out above
OTHER_BYTES = 1_000_000  # pictures, samples, facts
CHECKPOINT_BYTES = 100_000  # its JSON files


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a recipe computes with on its data, counted. Bytes are those of one rank."""

    images: int  # of the training split
    validation: int
    test: int
    pixel_bytes: int  # of all splits, decoded
    file_bytes: int  # of the prepared files
    resident: bool  # whether each rank holds the pixels in its memory
    parameters: int  # numbers that learn
    model_bytes: int  # parameters and buffers
    optimizer_bytes: int
    activation_bytes: float  # kept for the backward pass, of one image
    flops: float  # of one image's forward pass: matrix products and convolutions


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What was measured of a recipe on one kind of machine. Seconds and bytes."""

    step: StepTime  # with all pictures whole and all layers learning
    paces: tuple[float, ...]  # a step's time in each of the recipe's `phases`, relative to `step`
    evaluation: float  # of one image on one rank
    first: float  # what a start's first steps take beyond usual ones
    start: float | None  # from the command to the first step; None: not known
    overhead_bytes: float  # of the computing device's memory, beyond what is counted
    host_bytes: float  # of a rank's process, where it computes on a GPU
    precision: str  # what the recipe's "auto" became
    network: bool  # whether `step` knows what an all-reduce takes


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run will take."""

    ranks: int
    steps: int
    start: float | None
    training: float  # seconds; with all evaluations, as summary.json's
    host_bytes: float  # of one rank's process
    device_bytes: float | None  # of one GPU; None on a CPU
    data_bytes: float
    checkpoint_bytes: float  # of one
    checkpoints: int  # kept
    model_bytes: float  # of the finished run's model/
    journal_bytes: float

    @property
    def disk_bytes(self) -> float:
        """All of the run, and its data; while a checkpoint is written there is one more."""
        kept = (self.checkpoints + 1) * self.checkpoint_bytes
        return self.data_bytes + kept + self.model_bytes + self.journal_bytes


def phases(recipe: Recipe) -> list[float]:
    """The shares of the training at which a step's work changes: pictures grow, layers stop learning."""
    sides = (float(item.rpartition("@")[2]) for item in recipe.augment.progressive)
    moments = {0.0, *sides, *recipe.optim.freeze_after.values()}
    return sorted(moment for moment in moments if moment < 1)


def pace(recipe: Recipe, paces: Sequence[float], epoch: int) -> float:
    """The mean of the phases' `paces` over epoch `epoch`."""
    spans = list(pairwise([*phases(recipe), 1.0]))
    low, high = epoch / recipe.total_epochs, (epoch + 1) / recipe.total_epochs
    within = [max(0.0, min(high, end) - max(low, begin)) for begin, end in spans]
    return sum(share * each for share, each in zip(within, paces, strict=True)) / sum(within)


def training_seconds(recipe: Recipe, work: Workload, figures: Figures, ranks: int) -> float:
    """All steps and evaluations on `ranks` ranks: what summary.json calls seconds."""

    def steps_over(images: int) -> float:
        whole, rest = divmod(images, recipe.batch_size)
        found = whole * _step(figures, work, recipe.batch_size, ranks)
        return found + (_step(figures, work, rest, ranks) if rest and not recipe.drop_last else 0.0)

    epochs = range(recipe.total_epochs)
    trained = sum(
        pace(recipe, figures.paces, epoch) * steps_over(recipe.images_of(epoch, work.images)) for epoch in epochs
    )
    measured = {"validation": work.validation, "test": work.test, "last": 0}[recipe.select_on]
    evaluated = len(epochs) * math.ceil(measured / ranks) + math.ceil(work.test / ranks)
    return figures.first + trained + figures.evaluation * evaluated


def _step(figures: Figures, work: Workload, batch: int, ranks: int) -> float:
    """Of the rank with the largest share: the others wait for it."""
    return figures.step.seconds(
        ranks=ranks, images=math.ceil(batch / ranks), gradient_bytes=FLOAT_BYTES * work.parameters
    )


def num_steps(recipe: Recipe, images: int) -> int:
    """Optimizer steps of the whole training."""
    over = (recipe.images_of(epoch, images) for epoch in range(recipe.total_epochs))
    return sum(each // recipe.batch_size if recipe.drop_last else -(-each // recipe.batch_size) for each in over)


def counted_bytes(recipe: Recipe, work: Workload, share: int, microbatch: int = 0) -> float:
    """Memory of a rank's device that training with `share` images takes: weights, their copies, activations, images."""
    copies = 2 + bool(recipe.ema_decay)  # the net, the best weights, the average
    gradient = FLOAT_BYTES * work.parameters
    losses = 2 * FLOAT_BYTES * work.images if recipe.hard_share < 1 else 0
    part = math.ceil(share / recipe.optim.accumulate)
    part = min(part, microbatch) if microbatch else part
    images = work.pixel_bytes if work.resident else 0
    return copies * work.model_bytes + gradient + work.optimizer_bytes + losses + part * work.activation_bytes + images


def checkpoint_bytes(recipe: Recipe, work: Workload) -> float:
    """A checkpoint on the disk: the state, and beside it the best weights."""
    models = 2 + bool(recipe.ema_decay)
    losses = 2 * FLOAT_BYTES * work.images if recipe.hard_share < 1 else 0
    return models * work.model_bytes + work.optimizer_bytes + losses + CHECKPOINT_BYTES


def estimate(recipe: Recipe, spec: RunSpec, work: Workload, figures: Figures, ranks: int, *, on_gpu: bool) -> Estimate:
    """What training `recipe` as `spec` says takes on `ranks` ranks of the kind of machine that `figures` tell of."""
    seconds = training_seconds(recipe, work, figures, ranks)
    steps = num_steps(recipe, work.images)
    saved = checkpoint_bytes(recipe, work)
    device = counted_bytes(recipe, work, math.ceil(recipe.batch_size / ranks), spec.microbatch) + figures.overhead_bytes
    host = figures.host_bytes if on_gpu else device
    kept = spec.keep_last + max(1, spec.keep_best)
    lines = min(SYSTEM_LINES, seconds / SYSTEM_SECONDS)
    return Estimate(
        ranks=ranks,
        steps=steps,
        start=figures.start,
        training=seconds,
        host_bytes=host + 2 * saved,  # the copy that is being written, in two layouts
        device_bytes=device if on_gpu else None,
        data_bytes=work.file_bytes,
        checkpoint_bytes=saved,
        checkpoints=min(kept, recipe.total_epochs // spec.checkpoint_epochs + 2),  # also before the first step
        model_bytes=work.model_bytes,
        journal_bytes=steps * ROW_BYTES + lines * ranks * SYSTEM_BYTES + OTHER_BYTES,
    )
