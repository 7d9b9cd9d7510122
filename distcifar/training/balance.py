"""Parts of a batch for ranks of different speed, so that all are done at the same time.

The gradient stays that of the whole batch (contract 3): only who computes which images of it changes. BatchNorm takes
its statistics from a rank's part, as ever.
"""

import heapq
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count, pairwise
from statistics import median

import torch

from distcifar.config import Recipe
from distcifar.data.build import OpenData
from distcifar.data.loader import Batch
from distcifar.training.build import build_state
from distcifar.training.state import TrainState
from distcifar.training.step import Losses, train_step
from distcifar.world import World

LEAST_STEPS, LEAST_SECONDS = 3, 1.0  # that are timed of each size
LEAST_SLOPE = 0.25  # of the mean time of an image: a card that is idle at the sizes measured is not taken for endless


@dataclass(frozen=True)
class StepCost:
    """What a rank's own part of a step takes, in seconds: fixed + per_image * images."""

    fixed: float
    per_image: float

    def seconds(self, images: int) -> float:
        """Of a step with so many images of its own."""
        return self.fixed + self.per_image * images


def fitted(first: tuple[int, float], second: tuple[int, float]) -> StepCost:
    """The line through the times of two sizes (images, seconds), as far as it makes sense: nothing is negative.

    Where it does not it is wrong at the first size: the second is nearer to what will be asked for.
    """
    (before, earlier), (images, seconds) = first, second
    mean = seconds / images
    slope = mean if images == before else (seconds - earlier) / (images - before)
    per_image = min(mean, max(LEAST_SLOPE * mean, slope))
    return StepCost(seconds - per_image * images, per_image)


def balanced(costs: Sequence[StepCost], batch: int) -> tuple[int, ...]:
    """Each rank's images of a batch of `batch`, with the least time of the slowest rank.

    Image by image to whoever is done first with one more, which is exact where times grow with images. Each rank has
    two at least, as BatchNorm needs, where there are as many.
    """
    least = min(2, batch // len(costs))
    parts = [least] * len(costs)
    ends = [(cost.seconds(least + 1), rank) for rank, cost in enumerate(costs)]
    heapq.heapify(ends)
    for _ in range(batch - sum(parts)):
        _, rank = ends[0]
        parts[rank] += 1
        heapq.heapreplace(ends, (costs[rank].seconds(parts[rank] + 1), rank))
    return tuple(parts)


def slowest_seconds(costs: Sequence[StepCost], parts: Sequence[int]) -> float:
    """What a step takes with these parts: the time of the slowest rank."""
    return max(cost.seconds(images) for cost, images in zip(costs, parts, strict=True))


def ideal_seconds(costs: Sequence[StepCost], batch: int) -> float:
    """The same if images could be divided, so that all ranks that have some end together: no parts are faster.

    The level to which water rises that fills vessels with floors at `fixed` and widths of 1 / per_image.
    """
    level, width, filled = 0.0, 0.0, 0.0
    for cost in sorted(costs, key=lambda cost: cost.fixed):
        if width and level <= cost.fixed:
            break
        width += 1 / cost.per_image
        filled += cost.fixed / cost.per_image
        level = (batch + filled) / width
    return level


def measured_costs(recipe: Recipe, data: OpenData, precision: str, world: World, *, microbatch: int) -> list[StepCost]:
    """Each rank's cost, from true steps (batch, forward, backward, update) of a training of its own, then dropped.

    At an equal part of the batch, and at the part which that time suggests, since larger batches may leave a cache or
    fill a card; by all ranks at the same moment, since those of one machine slow each other down. Takes some three
    seconds, and the memory of another training state. A collective.
    """
    alone = World(device=world.device)
    state = build_state(recipe, data, "", alone)
    state.set_precision(precision)
    most = min(recipe.batch_size, data.loaders.train.store.num_samples)

    def timed(images: int) -> tuple[int, float]:
        size = min(max(2, images), most)  # no weights: data of before a rollback have some
        loader = replace(data.loaders.train, batch_size=size, world=alone, weights=(), drop_last=True)
        batches = chain.from_iterable(loader.batches(epoch) for epoch in count())
        world.barrier()
        return loader.batch_size, _step_seconds(state, batches, alone, microbatch)

    first = timed(recipe.batch_size // world.size)
    means = [StepCost(0.0, seconds / images) for images, seconds in world.each(first)]
    second = timed(balanced(means, recipe.batch_size)[world.rank])
    return world.each(fitted(first, second))


def _step_seconds(state: TrainState, batches: Iterator[Batch], alone: World, microbatch: int) -> float:
    """The median of a few steps, after one to warm up."""
    net = Losses(state.model).train()
    ends: list[float] = []
    while len(ends) <= LEAST_STEPS or ends[-1] - ends[0] < LEAST_SECONDS:
        train_step(net, state, state.recipe, next(batches), alone, microbatch=microbatch)
        if alone.device.type == "cuda":
            torch.cuda.synchronize(alone.device)
        ends.append(time.monotonic())
    return median(end - before for before, end in pairwise(ends))
