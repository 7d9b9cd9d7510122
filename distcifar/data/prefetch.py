"""The next batch is prepared while the device computes with this one.

On a GPU that is a second stream: copies and gathers of batch k + 1 run beside step k. On a CPU there is no second
place to compute in: the kernel and the network share the cores, so that a thread could only hide the moments when the
network leaves a core idle. There is nothing to hide: `quick` computes for 33 s an epoch, and its loader for less than
0.2 s of processor time. And numba's threads are not to be used by two at once. So batches are made when asked for.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Protocol, TypeVar

import torch

T = TypeVar("T")


class Beside(Protocol):
    """A place in which the device works beside the steps."""

    def preparing(self) -> AbstractContextManager[None]:
        """Within, what is queued runs there, after all that the steps were given so far."""
        ...

    def hand_over(self) -> None:
        """What the steps are given from now on runs after all that was prepared so far."""
        ...


def prepared_ahead(batches: Iterator[T], device: torch.device) -> Iterator[T]:
    """`batches` of tensors on `device`: on a GPU each is queued before the step that comes before it is handed out."""
    return one_ahead(batches, side_stream(device)) if device.type == "cuda" else batches


def one_ahead(batches: Iterator[T], beside: Beside) -> Iterator[T]:
    """`batches`, each asked for before the one that precedes it is given away.

    At most three are in memory: the one that is computed with, the next, and the one being prepared. Their memory
    needs no Tensor.record_stream, which would keep it for as long as the host runs ahead of the device: it goes back to
    the stream that prepares, and what is prepared later waits for all steps that were queued before.
    """
    with beside.preparing():
        coming = next(batches, None)
    while coming is not None:
        beside.hand_over()
        batch = coming
        with beside.preparing():
            coming = next(batches, None)
        yield batch


class SideStream:
    """A CUDA stream beside the current one. Nothing here makes the host wait."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """See Beside."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            yield

    def hand_over(self) -> None:
        """See Beside."""
        torch.cuda.current_stream(self._device).wait_stream(self._stream)


@cache
def side_stream(device: torch.device) -> SideStream:
    """The one of `device`: the allocator keeps freed memory for the stream that it was taken on."""
    return SideStream(device)
