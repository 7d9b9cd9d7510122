"""Batches on the device: the plan's ids, a store's images, the recipe's pixels.

A batch is one rank's share of a global batch. Nothing here keeps state between epochs: any (epoch, step) can
be asked for, which is what makes a run resumable at every step.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distcifar.data.augment import resize
from distcifar.data.draws import Draws, Mixture
from distcifar.data.pixels import PixelPipeline
from distcifar.data.plan import Ids, epoch_order, global_batch, hardest, share, steps_per_epoch
from distcifar.data.prefetch import prepared_ahead
from distcifar.data.stores import Fetched, Store
from distcifar.data.transfer import part_of, to_device
from distcifar.world import World

DRAWN_AT_ONCE = 1 << 16  # samples: numpy is quick with them, a GPU takes them in one copy, they are a few megabytes


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
    global_ids: Ids | None = None  # int64 [total], in training: of the whole global batch
    start: int = 0  # in training: where in the global batch the share begins


@dataclass(frozen=True)
class TrainLoader:
    """Training batches of one rank."""

    store: Store
    pixels: PixelPipeline
    batch_size: int  # global
    seed: int
    world: World
    drop_last: bool = False
    epochs: int = 1  # of the whole training: pictures may grow with it
    weights: tuple[int, ...] = ()  # each rank's part of a whole batch, where they are not equal

    @property
    def images(self) -> int:
        """This rank's part of a whole batch."""
        mine = self._share(self.batch_size)
        return mine.stop - mine.start

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one epoch, the same on every rank."""
        return self.steps_over(self.store.num_samples)

    def steps_over(self, images: int) -> int:
        """Optimizer steps of an epoch over so many images."""
        return steps_per_epoch(images, self.batch_size, drop_last=self.drop_last)

    def batches(
        self, epoch: int, first_step: int = 0, images: int = 0, losses: NDArray[np.float32] | None = None
    ) -> Iterator[Batch]:
        """This rank's batches of epoch `epoch` from step `first_step` of that epoch on.

        With `losses` (float32, one per training image) the epoch goes over the `images` hardest only.
        """
        order = epoch_order(self.seed, epoch, self.store.num_samples)
        order = order if losses is None else hardest(order, losses, images)
        return prepared_ahead(self._batches(epoch, order, first_step), self.world.device)

    def _batches(self, epoch: int, order: Ids, first_step: int) -> Iterator[Batch]:
        steps = range(first_step, self.steps_over(len(order)))
        whole = [global_batch(order, step, self.batch_size) for step in steps]
        # A rank whose share is empty still steps with its peers: it is given one sample that does not count.
        places = [self._share(len(ids)) for ids in whole]
        parts = [ids[place] for place, ids in zip(places, whole, strict=True)]
        given = [part if len(part) else ids[:1] for part, ids in zip(parts, whole, strict=True)]
        if not given:
            return
        partners, mixture = self.pixels.draw_mix(np.concatenate(given), epoch)
        mixture = to_device(mixture, self.world.device)
        spans = spans_of(given)
        wanted = [np.concatenate([ids, partners[span]]) for ids, span in zip(given, spans, strict=True)]
        draws = self._drawn(wanted, epoch)
        fetched = self.store.fetch(wanted)
        together = zip(steps, given, spans, places, whole, draws, fetched, strict=True)
        for step, ids, span, place, all_ids, drawn, found in together:
            batch = self._batch(ids, drawn, part_of(mixture, span), found, place=place, global_ids=all_ids)
            side = self.pixels.config.side_at((epoch + step / self.steps_over(len(order))) / self.epochs)
            yield replace(batch, images=resize(batch.images, side)) if side else batch

    def _share(self, count: int) -> slice:
        """This rank's part of `count` images."""
        return share(count, self.world.rank, self.world.size, self.weights)

    def _drawn(self, batches: Sequence[Ids], epoch: int) -> Iterator[Draws]:
        """For each of `batches` (ids) what is drawn for it, on the device; of many batches at once."""
        many = max(1, DRAWN_AT_ONCE // len(batches[0]))
        for first in range(0, len(batches), many):
            some = batches[first : first + many]
            draws = to_device(self.pixels.draw(np.concatenate(some), epoch), self.world.device)
            for span in spans_of(some):
                yield part_of(draws, span)

    def _batch(
        self, ids: Ids, draws: Draws, mixture: Mixture | None, fetched: Fetched, *, place: slice, global_ids: Ids
    ) -> Batch:
        n, total, start = len(ids), len(global_ids), place.start
        counted = place.stop - place.start
        images, rows, labels = fetched
        pictures = self.pixels.train(images, rows, draws)
        if mixture is None:
            return Batch(ids, pictures, labels, counted, total, global_ids=global_ids, start=start)
        mixed = self.pixels.mix(pictures[:n], pictures[n:], mixture)
        own_share = torch.as_tensor(mixture.own_share, dtype=torch.float32)
        return Batch(ids, mixed, labels[:n], counted, total, labels[n:], own_share, global_ids, start)


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
        return prepared_ahead(self._batches(), self.world.device)

    def _batches(self) -> Iterator[Batch]:
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

    def weighted(self, weights: tuple[int, ...]) -> "Loaders":
        """The same with each rank's part of a whole batch as in `weights`."""
        return replace(self, train=replace(self.train, weights=weights))


def spans_of(batches: Sequence[Ids]) -> list[slice]:
    """Where each of `batches` lies in their concatenation."""
    return [slice(start, stop) for start, stop in pairwise(accumulate(map(len, batches), initial=0))]
