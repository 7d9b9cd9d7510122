"""Batches on the device: the plan's ids, a store's images, the recipe's pixels.

A batch is one rank's share of a global batch. Nothing here keeps state between epochs: any (epoch, step) can
be asked for, which is what makes a run resumable at every step.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from distcifar.data.draws import Floats
from distcifar.data.pixels import PixelPipeline
from distcifar.data.plan import Ids, epoch_order, global_batch, share, steps_per_epoch
from distcifar.data.stores import Fetched, Store
from distcifar.world import World


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch."""

    ids: Ids  # int64 [n]
    images: Tensor  # float32 [n, C, S, S], channels_last
    labels: Tensor  # int64 [n]
    counted: int  # how many of the n count: all, or none on a rank whose share of a small batch is empty
    total: int  # size of the global batch
    partner_labels: Tensor | None = None  # int64 [n], where images are mixed
    own_share: Tensor | None = None  # float32 [n], lambda of the mixture


@dataclass(frozen=True)
class TrainLoader:
    """Training batches of one rank."""

    store: Store
    pixels: PixelPipeline
    batch_size: int  # global
    seed: int
    world: World
    drop_last: bool = False

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one epoch, the same on every rank."""
        return steps_per_epoch(self.store.num_samples, self.batch_size, drop_last=self.drop_last)

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """This rank's batches of epoch `epoch` from step `first_step` of that epoch on."""
        order = epoch_order(self.seed, epoch, self.store.num_samples)
        steps = range(first_step, self.steps_per_epoch)
        whole = [global_batch(order, step, self.batch_size) for step in steps]
        # A rank whose share is empty still steps with its peers: it is given one sample that does not count.
        parts = [ids[share(len(ids), self.world.rank, self.world.size)] for ids in whole]
        given = [part if len(part) else ids[:1] for part, ids in zip(parts, whole, strict=True)]
        mixtures = [self.pixels.draw_mix(ids, epoch) for ids in given]
        wanted = [np.concatenate([ids, partners]) for ids, (partners, _) in zip(given, mixtures, strict=True)]
        fetched = self.store.fetch(wanted)
        for ids, mixture, part, all_ids, found in zip(given, mixtures, parts, whole, fetched, strict=True):
            yield self._batch(ids, epoch, mixture, found, counted=len(part), total=len(all_ids))

    def _batch(
        self, ids: Ids, epoch: int, mixture: tuple[Ids, Floats], fetched: Fetched, *, counted: int, total: int
    ) -> Batch:
        n = len(ids)
        images, rows, labels = fetched
        own = self.pixels.train(images, rows[:n], ids, epoch)
        if not self.pixels.mixes:
            return Batch(ids, own, labels, counted, total)
        partner_ids, drawn_share = mixture
        partners = self.pixels.train(images, rows[n:], partner_ids, epoch)
        mixed, own_share = self.pixels.mix(own, partners, drawn_share, ids, epoch)
        return Batch(ids, mixed, labels[:n], counted, total, labels[n:], own_share)


@dataclass(frozen=True)
class EvalLoader:
    """Each sample of a split once over all ranks (contract 4): a rank takes one contiguous part."""

    store: Store
    pixels: PixelPipeline
    batch_size: int  # per rank
    world: World

    @property
    def num_samples(self) -> int:
        """Samples of the split over all ranks."""
        return self.store.num_samples

    @property
    def common_batches(self) -> int:
        """The number of batches that every rank has at least."""
        return -(-(self.num_samples // self.world.size) // self.batch_size)

    def batches(self) -> Iterator[Batch]:
        """This rank's part in order; none where there are more ranks than samples."""
        mine = share(self.num_samples, self.world.rank, self.world.size)
        ids = np.arange(mine.start, mine.stop, dtype=np.int64)
        parts = [ids[i : i + self.batch_size] for i in range(0, len(ids), self.batch_size)]
        for part, (images, rows, labels) in zip(parts, self.store.fetch(parts), strict=True):
            yield Batch(part, self.pixels.evaluate(images, rows), labels, len(part), len(part))


@dataclass(frozen=True)
class Loaders:
    """What `fit` trains and evaluates on."""

    train: TrainLoader
    validation: EvalLoader | None
    test: EvalLoader
    num_classes: int
