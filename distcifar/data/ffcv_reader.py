"""FFCV's Loader and epoch iterator, made safe: our order, ends that leave nothing behind, errors that arrive.

This module imports ffcv (5 s), so it is imported inside functions only. `import ffcv` sets torch to one thread;
`stores.StreamedStore` puts that right.
"""

import copy
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import torch
from ffcv.loader import Loader, OrderOption
from ffcv.loader import loader as loader_module
from ffcv.loader.epoch_iterator import EpochIterator
from ffcv.memory_managers.os_cache import OSCacheContext, OSCacheManager
from ffcv.pipeline import compiler
from ffcv.reader import Reader
from numpy.typing import NDArray


def open_loader(path: Path, batch_size: int, threads: int) -> Any:
    """An FFCV Loader of the beton at `path` that only decodes; about a second of compilation."""
    # At each epoch FFCV sets torch's thread count to its own: a CPU model would train at half speed. Its compiler
    # module is given a torch whose set_num_threads does nothing.
    compiler.ch = _TorchWithoutThreads
    loader_module.OSCacheManager = _WithoutPages  # as above: it looks it up there
    fields = Reader(str(path)).handlers
    return Loader(
        str(path),
        batch_size=batch_size,
        num_workers=threads,
        order=OrderOption.SEQUENTIAL,
        os_cache=True,  # memory-mapped: ranks of a node share the page cache
        drop_last=False,
        pipelines={name: [field.get_decoder_class()()] for name, field in fields.items()},
    )


class Copied(Protocol):
    """A copy from a buffer to a GPU, under way; torch.cuda.Event is one."""

    def synchronize(self) -> None:
        """Returns when it is over."""
        ...


class Epoch(EpochIterator):
    """A thread of FFCV's that decodes the samples of `order` (uint64 [n]), at most `ahead` batches in advance.

    Iterating gives (images uint8 [b, H, W, C], labels int64 [b, 1]): views of `ahead` + 2 buffers, pinned where there
    is a GPU, of which each is valid until the next batch is asked for; on a GPU until the copy given to `copying` is
    over. A context manager, whose end stops the thread. Raises what the decoding has raised.
    """

    def __init__(self, loader: Any, order: NDArray[np.uint64], ahead: int) -> None:
        self.error: Exception | None = None
        self._waited, self._held_up = 0.0, 0.0  # seconds: the reader for batches, this thread for copies to the GPU
        self._asked_at, self._waited_then = time.monotonic(), 0.0
        self._taken = -1
        self._copies: dict[int, Copied] = {}  # by buffer
        own = copy.copy(loader)  # shares what is compiled; other epochs of the loader may have another depth
        own.batches_ahead = ahead
        super().__init__(own, order)  # starts the thread

    def __enter__(self) -> "Epoch":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the thread and waits for it: an early end would leak it and its mapping (FFCV issues 345, 393)."""
        self.iter_ixes = iter(())  # the thread looks at its terminate_event only while its queue is full
        self.close()
        while self.is_alive():
            while not self.output_queue.empty():
                self.output_queue.get_nowait()
            self.join(0.01)
        for copied in self._copies.values():  # before the buffers are given away
            copied.synchronize()

    def __next__(self) -> Any:
        start = time.monotonic()
        try:
            batch = super().__next__()
        except StopIteration:
            if self.error is not None:
                raise self.error from None
            raise
        finally:
            self._waited += time.monotonic() - start
        self._taken += 1
        return batch

    def wait_share(self) -> float:
        """The share of the time since the last call that the reader has spent waiting for the decoding.

        Where the host runs ahead of a GPU all buffers wait for their copies: that is not the decoding's fault.
        """
        now, waited = time.monotonic(), self._waited - self._held_up
        share = (waited - self._waited_then) / max(now - self._asked_at, 1e-9)
        self._asked_at, self._waited_then = now, waited
        return max(share, 0.0)

    def copying(self, copied: Copied | None = None) -> None:
        """Says that the batch that was given last is being copied: its buffer stays as it is until that is over.

        copied: what tells of the end; without it, all that the current CUDA stream was given so far.
        """
        if copied is None:
            copied = torch.cuda.Event(blocking=True)  # waiting for it leaves the core to others
            copied.record()
        self._copies[self._taken % self._buffers] = copied

    @property
    def _buffers(self) -> int:
        return int(self.loader.batches_ahead) + 2

    def run(self) -> None:
        """The thread. One of FFCV's that raises says so on stderr and leaves the reader waiting for ever."""
        try:
            super().run()
        except Exception as error:  # whatever the decoding raised
            self.error = error
            self.output_queue.put(None)  # the sign of the end

    def run_pipeline(self, number: int, ids: Any, buffer: int, event: Any) -> Any:
        """Decodes one batch into `buffer`, as soon as that has been copied. FFCV would wait on the GPU, not here."""
        if (copied := self._copies.get(buffer)) is not None:
            start = time.monotonic()
            copied.synchronize()
            self._held_up += time.monotonic() - start
        return super().run_pipeline(number, ids, buffer, event)


class _TorchWithoutThreads:
    """Stands in for torch in FFCV's compiler module, which uses nothing of it but this."""

    @staticmethod
    def set_num_threads(_: int) -> None:
        """Nothing: see open_loader."""


class _WithoutPages(OSCacheManager):
    """Finds samples in the mapped file without FFCV's table of the pages of each, a set per sample.

    Only its other ways of reading need that: 1.1 kB for each image, which is a third of a CIFAR image.
    """

    def __init__(self, reader: Reader) -> None:
        table = reader.alloc_table
        order = np.argsort(table["ptr"])
        self.reader, self.ptrs, self.sizes = reader, table["ptr"][order], table["size"][order]
        self.context = OSCacheContext(self)
