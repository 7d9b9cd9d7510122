"""Where a split's uint8 images are: resident on the device, or streamed from the beton by FFCV.

Both answer the same question: given the ids of the coming batches, yield for each the images, the rows in
them that are meant, and the labels. Order and augmentation are not theirs (data/plan.py, data/pixels.py).
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from distcifar.data.beton import foreign, require_counted
from distcifar.data.manifest import Manifest, repair_command
from distcifar.data.plan import Ids
from distcifar.data.transfer import to_device
from distcifar.errors import DataError

Fetched = tuple[Tensor, Tensor, Tensor]  # images uint8 [N, H, W, C], rows int64 [n], labels int64 [n]

FIRST_AHEAD, MOST_AHEAD = 2, 32  # batches that FFCV decodes before they are asked for
REVIEWED = 32  # batches after which that number is looked at again
WORTH = 0.02  # share of the time: who waits less for batches needs no more of them ahead
HELPED = 0.5  # of the wait, at most, is left where twice as many ahead were worth their memory
BUFFER_SHARE = 0.05  # of the free memory, at most, for decoded batches
DECODED_AT_ONCE = 256  # images, where a whole split is decoded


class Store(Protocol):
    """A split of a data set."""

    num_samples: int

    def fetch(self, batches: Sequence[Ids]) -> Iterator[Fetched]:
        """Yields, for each of `batches` (ids int64 [n]), tensors on the store's device."""
        ...


class ResidentStore:
    """All images in device memory: N x H x W x C bytes (CIFAR-10: 150 MB)."""

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64], device: torch.device) -> None:
        self.num_samples = len(labels)
        self._images = torch.from_numpy(images).to(device)
        self._labels = torch.from_numpy(labels).to(device)
        self._device = device

    def fetch(self, batches: Sequence[Ids]) -> Iterator[Fetched]:
        if not batches:
            return
        all_rows = to_device(np.concatenate(batches), self._device)  # in one copy: 8 bytes a sample
        for rows in torch.as_tensor(all_rows).split([len(ids) for ids in batches]):
            yield self._images, rows, self._labels[rows]


class StreamedStore:
    """Images decoded by FFCV from the memory-mapped beton as they are needed.

    FFCV's own shuffling, sharding and augmentation are not used: they pad, they cannot be resumed, and their
    random numbers depend on threads (docs/design.md). Its epoch iterator is driven with our order instead.
    """

    def __init__(self, path: Path, num_samples: int, device: torch.device, threads: int) -> None:
        self.num_samples = num_samples
        self.ahead = FIRST_AHEAD
        self._waits: dict[int, float] = {}  # by `ahead`: the share of the time that was spent waiting for batches
        self._path, self._device, self._threads = path, device, threads
        self._loaders: dict[int, Any] = {}  # by batch size: each costs a compilation of about a second

    def fetch(self, batches: Sequence[Ids]) -> Iterator[Fetched]:
        batches = [ids for ids in batches if len(ids)]
        if not batches:
            return
        largest = max(len(ids) for ids in batches)
        if any(len(ids) != largest for ids in batches[:-1]):
            raise ValueError("only the last batch may be smaller: FFCV cuts the order into equal chunks")
        order = np.concatenate(batches).astype(np.uint64)  # int64 would cost another compilation
        done = 0
        while done < len(batches):  # anew wherever another number of batches ahead is chosen
            for fetched in self._decoded(order[done * largest :], largest):
                done += 1
                yield fetched

    def _decoded(self, order: NDArray[np.uint64], batch_size: int) -> Iterator[Fetched]:
        """The batches of `order`, or as many of them as come before `ahead` changes."""
        loader = self._loader(batch_size)  # imports ffcv for the first time, and puts torch's thread count right
        from distcifar.data.ffcv_reader import Epoch

        with Epoch(loader, order, self.ahead) as epoch:
            for number in range(1, -(-len(order) // batch_size) + 1):
                try:
                    images, labels = next(epoch)
                except Exception as error:  # whatever the decoding raised
                    raise self._unreadable(error) from error
                if number == 1:
                    epoch.wait_share()  # it could not be ready: counted from here
                yield self._on_device(images, labels, epoch)
                if number % REVIEWED == 0 and self._review(epoch.wait_share(), images.nbytes):
                    return

    def _review(self, wait: float, batch_bytes: int) -> bool:
        """Whether `ahead` has changed, after that share of the time was spent waiting for batches."""
        self._waits[self.ahead] = wait
        before, free = self.ahead, psutil.virtual_memory().available
        self.ahead = next_ahead(before, self._waits, batch_bytes, free)
        return self.ahead != before

    def _on_device(self, images: NDArray[np.uint8], labels: NDArray[np.int64], epoch: Any) -> Fetched:
        pixels, target = torch.from_numpy(images), torch.from_numpy(labels)[:, 0]
        if self._device.type == "cpu":  # the images are copied when they are augmented, before the next batch
            return pixels, torch.arange(len(pixels)), target.clone()
        there = pixels.to(self._device, non_blocking=True), target.to(self._device, non_blocking=True)
        epoch.copying()
        return there[0], torch.arange(len(pixels), device=self._device), there[1]

    def _unreadable(self, error: Exception) -> DataError:
        return DataError(
            f"{self._path} could not be streamed: {type(error).__name__}: {error}",
            "Every image of a beton can be decoded",
            f"See whether its disk is well, and write it again with `{repair_command(self._path)}`",
        )

    def _loader(self, batch_size: int) -> Any:
        if batch_size not in self._loaders:
            threads = torch.get_num_threads()
            from distcifar.data.ffcv_reader import open_loader

            torch.set_num_threads(threads)  # importing ffcv has set it to 1
            self._loaders[batch_size] = open_loader(self._path, batch_size, self._threads)
        return self._loaders[batch_size]


def decode_all(path: Path, manifest: Manifest, threads: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """All images (uint8 [N, H, W, C]) and labels (int64 [N]) of a verified beton of JPEGs.

    By FFCV, since other decoders of JPEG round otherwise: resident and streamed images are to have the same pixels.
    Raises DataError where the file contradicts its manifest.
    """
    ids = np.arange(manifest.num_samples)
    parts = [ids[start : start + DECODED_AT_ONCE] for start in range(0, len(ids), DECODED_AT_ONCE)]
    images, labels = np.empty((len(ids), *manifest.shape), np.uint8), np.empty(len(ids), np.int64)
    store = StreamedStore(path, len(ids), torch.device("cpu"), threads)
    for part, (pixels, _, found) in zip(parts, store.fetch(parts), strict=True):
        if pixels.shape[1:] != manifest.shape:
            raise foreign(path, f"its images are {[*pixels.shape[1:]]} instead of {[*manifest.shape]}")
        images[part], labels[part] = pixels.numpy(), found.numpy()
    require_counted(path, labels, manifest)
    return images, labels


def next_ahead(ahead: int, waits: Mapping[int, float], batch_bytes: int, free_bytes: int) -> int:
    """How many batches are to be decoded ahead, now that `ahead` of them were.

    waits: for each number that was tried, the share of the time spent waiting for batches. Twice as many, while the
    wait is worth it and the memory is there (FFCV keeps two batches more); half as many again where that has not
    helped: then decoding is slow, not uneven.
    """
    deeper, shallower = 2 * ahead, ahead // 2
    if shallower in waits and waits[ahead] > HELPED * waits[shallower]:
        return shallower
    tried_in_vain = deeper in waits and waits[deeper] > HELPED * waits[ahead]
    fits = deeper <= MOST_AHEAD and (deeper + 2) * batch_bytes <= BUFFER_SHARE * free_bytes
    return deeper if waits[ahead] > WORTH and fits and not tried_in_vain else ahead
