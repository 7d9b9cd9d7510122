"""Where a split's uint8 images are: resident on the device, or streamed from the beton by FFCV.

Both answer the same question: given the ids of the coming batches, yield for each the images, the rows in
them that are meant, and the labels. Order and augmentation are not theirs (data/plan.py, data/pixels.py).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distcifar.data.manifest import repair_command
from distcifar.data.plan import Ids
from distcifar.errors import DataError

Fetched = tuple[Tensor, Tensor, Tensor]  # images uint8 [N, H, W, C], rows int64 [n], labels int64 [n]


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
        for ids in batches:
            rows = torch.from_numpy(ids).to(self._device, non_blocking=True)
            yield self._images, rows, self._labels[rows]


class StreamedStore:
    """Images decoded by FFCV from the memory-mapped beton as they are needed.

    FFCV's own shuffling, sharding and augmentation are not used: they pad, they cannot be resumed, and their
    random numbers depend on threads (docs/design.md). Its epoch iterator is driven with our order instead.
    """

    def __init__(self, path: Path, num_samples: int, device: torch.device, threads: int) -> None:
        self.num_samples = num_samples
        self._path, self._device, self._threads = path, device, threads
        self._loaders: dict[int, Any] = {}  # by batch size: each costs a compilation of about a second

    def fetch(self, batches: Sequence[Ids]) -> Iterator[Fetched]:
        batches = [ids for ids in batches if len(ids)]
        if not batches:
            return
        largest = max(len(ids) for ids in batches)
        loader = self._loader(largest)  # imports ffcv for the first time, and puts torch's thread count right
        if any(len(ids) != largest for ids in batches[:-1]):
            raise ValueError("only the last batch may be smaller: FFCV cuts the order into equal chunks")
        order = np.concatenate(batches).astype(np.uint64)  # int64 would cost another compilation
        epoch = _epoch(loader, order)
        try:
            for images, labels in epoch:  # views of a ring of buffers: valid until the next batch
                yield self._on_device(images, labels)
            if epoch.error is not None:
                raise self._unreadable(epoch.error) from epoch.error
        finally:  # without this an early end leaks the thread and its mapping (FFCV issues 345, 393)
            _stop(epoch)

    def _on_device(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> Fetched:
        pixels, target = torch.from_numpy(images), torch.from_numpy(labels[:, 0].copy())
        if self._device.type != "cpu":  # the ring is reused: the copy must be over before it turns
            pixels = pixels.pin_memory().to(self._device, non_blocking=True)
            target = target.to(self._device, non_blocking=True)
        return pixels, torch.arange(len(pixels), device=self._device), target

    def _unreadable(self, error: Exception) -> DataError:
        return DataError(
            f"{self._path} could not be streamed: {type(error).__name__}: {error}",
            "Every image of a beton can be decoded",
            f"See whether its disk is well, and write it again with `{repair_command(self._path)}`",
        )

    def _loader(self, batch_size: int) -> Any:
        if batch_size not in self._loaders:
            self._loaders[batch_size] = _ffcv_loader(self._path, batch_size, self._threads)
        return self._loaders[batch_size]


def _ffcv_loader(path: Path, batch_size: int, threads: int) -> Any:
    """An FFCV Loader that decodes raw pixels and labels, and leaves torch's thread count alone."""
    before = torch.get_num_threads()
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.ndarray import NDArrayDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.pipeline import compiler

    # On import and at each epoch FFCV sets torch's thread count to its own: a CPU model would train at half
    # speed. Its compiler module is given a torch whose set_num_threads does nothing.
    compiler.ch = _TorchWithoutThreads
    torch.set_num_threads(before)
    return Loader(
        str(path),
        batch_size=batch_size,
        num_workers=threads,
        order=OrderOption.SEQUENTIAL,
        os_cache=True,  # memory-mapped: ranks of a node share the page cache
        drop_last=False,
        pipelines={"image": [NDArrayDecoder()], "label": [IntDecoder()]},
    )


def _epoch(loader: Any, order: NDArray[np.uint64]) -> Any:
    """FFCV's epoch iterator over `order`, which ends with an `error` instead of never where its thread fails.

    A thread of FFCV's that raises says so on stderr and puts nothing more into the queue for which we wait.
    """
    from ffcv.loader.epoch_iterator import EpochIterator

    class Epoch(EpochIterator):
        error: Exception | None = None

        def run(self) -> None:
            try:
                super().run()
            except Exception as error:  # whatever the decoding raised
                self.error = error
                self.output_queue.put(None)  # the sign of the end

    return Epoch(loader, order)


class _TorchWithoutThreads:
    """Stands in for torch in FFCV's compiler module, which uses nothing of it but this."""

    @staticmethod
    def set_num_threads(_: int) -> None:
        """Nothing: see _ffcv_loader."""


def _stop(epoch: Any) -> None:
    """Ends FFCV's epoch thread and waits for it."""
    epoch.iter_ixes = iter(())  # the thread looks at its terminate_event only while its queue is full
    epoch.close()
    while epoch.is_alive():
        while not epoch.output_queue.empty():
            epoch.output_queue.get_nowait()
        epoch.join(0.01)
