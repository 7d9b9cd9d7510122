"""FFCV's DatasetWriter, made safe to interrupt.

This module imports ffcv (5 s), so it is imported inside functions only. `import ffcv` sets torch to one thread;
`beton.write_beton` puts that right.
"""

import multiprocessing
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
from ffcv.fields import IntField, NDArrayField, RGBImageField
from ffcv.memory_allocator import MemoryAllocator
from ffcv.writer import DatasetWriter, worker_job_indexed_dataset
from numpy.typing import NDArray

_CHUNK = 512  # images between two updates of the progress bar


class InProcessWriter(DatasetWriter):
    """DatasetWriter with its work done in this process instead of in forked ones.

    FFCV's own loop waits forever for a worker that died, its workers outlive a parent that was killed, and
    forking under torch's threads can deadlock. One process is as fast as two (measured: 1.4 s for 50,000 CIFAR
    images either way), since FFCV's workers take turns at the file.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], page_size: int, jpeg_quality: int | None = None) -> None:
        """shape: of an image, [H, W, C]. jpeg_quality: None keeps its pixels, else it becomes a JPEG (C is 3)."""
        raw = NDArrayField(np.dtype("uint8"), shape)
        image = raw if jpeg_quality is None else RGBImageField(write_mode="jpg", jpeg_quality=jpeg_quality)
        fields = {"image": image, "label": IntField()}
        super().__init__(str(path), fields, page_size=page_size, num_workers=1)

    def write(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        advance: Callable[[int], None],
        rows: NDArray[np.int64] | None = None,
    ) -> None:
        """Writes images (uint8 [M, H, W, C]) `rows` (int64 [N]; None: all) and labels (int64 [N]).

        `advance` is told how many more are done.
        """
        self.num_samples = len(labels)
        self.prepare()  # header and fields; makes self.metadata_sm, shared memory for pointers and labels
        try:
            allocations: SimpleQueue[Any] = SimpleQueue()
            worker_job_indexed_dataset(
                _Chunks(len(labels), advance),
                self.metadata_sm,
                self.metadata_type,
                self.fields,
                MemoryAllocator(self.fname, self.data_region_start, self.page_size),
                multiprocessing.Value("Q", 0),  # FFCV's own count of what is done
                allocations,
                _Samples(images, labels, rows),
            )
            self.finalize(allocations.get())
        finally:
            self.metadata_sm.unlink()
            with suppress(BufferError):  # an exception's traceback may still hold a view of it
                self.metadata_sm.close()


class _Chunks:
    """The work queue that FFCV's worker empties: (place in the file, index) pairs, then None."""

    def __init__(self, num_samples: int, advance: Callable[[int], None]) -> None:
        self._starts = iter(range(0, num_samples, _CHUNK))
        self._num_samples, self._advance = num_samples, advance

    def get(self) -> list[tuple[int, int]] | None:
        start = next(self._starts, None)
        if start is None:
            return None
        stop = min(start + _CHUNK, self._num_samples)
        self._advance(stop - start)
        return [(index, index) for index in range(start, stop)]


class _Samples:
    """What FFCV reads the samples from."""

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64], rows: NDArray[np.int64] | None) -> None:
        self._images, self._labels, self._rows = np.ascontiguousarray(images), labels, rows

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int]:
        row = index if self._rows is None else self._rows[index]
        return self._images[row], int(self._labels[index])
