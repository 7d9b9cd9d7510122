"""What is drawn on the host, brought to the device without anyone waiting: one asynchronous copy for many arrays.

A copy from ordinary memory, as torch.as_tensor(values, device="cuda") makes it, holds the host up until the GPU has
taken it, and each small copy costs a call. Here the draws of many batches go in one piece through pinned memory.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

T = TypeVar("T")

ALIGNMENT = 16  # bytes: a view of any type may begin there


def each_array(tree: T, change: Callable[[Any], Any]) -> T:
    """`tree` (arrays in dataclasses and tuples, or None) with `change` of each array in its place, in a fixed order."""
    if tree is None:
        return tree
    if isinstance(tree, tuple):
        return tuple(each_array(item, change) for item in tree)  # type: ignore[return-value]
    if is_dataclass(tree) and not isinstance(tree, type):
        return replace(tree, **{f.name: each_array(getattr(tree, f.name), change) for f in fields(tree)})
    return change(tree)


def part_of(tree: T, part: slice) -> T:
    """`tree` with that part of each of its arrays."""
    return each_array(tree, lambda array: array[part])


def to_device(tree: T, device: torch.device) -> T:
    """`tree` with its numpy arrays (none empty) as tensors on `device`, there for what the current stream does next.

    On a CPU the tree itself: there the kernel reads numpy arrays.
    """
    if device.type == "cpu":
        return tree
    arrays = arrays_of(tree)
    staging = torch.empty(packed_bytes(arrays), dtype=torch.uint8, pin_memory=True)
    pack(arrays, staging.numpy())
    # The allocator of pinned memory keeps `staging` until the copy is over.
    tensors = iter(unpack(staging.to(device, non_blocking=True), arrays))
    return each_array(tree, lambda _: next(tensors))


def arrays_of(tree: Any) -> list[NDArray[Any]]:
    """The arrays of `tree`, in each_array's order."""
    found: list[NDArray[Any]] = []
    each_array(tree, found.append)
    return found


def packed_bytes(arrays: Sequence[NDArray[Any]]) -> int:
    """The length of `arrays` one after the other, each from an aligned place on."""
    return sum(_aligned(array.nbytes) for array in arrays)


def pack(arrays: Sequence[NDArray[Any]], into: NDArray[np.uint8]) -> None:
    """Writes the bytes of `arrays` into `into` (uint8 [packed_bytes])."""
    place = 0
    for array in arrays:
        into[place : place + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        place += _aligned(array.nbytes)


def unpack(packed: Tensor, like: Sequence[NDArray[Any]]) -> list[Tensor]:
    """Views of `packed` (uint8 [packed_bytes]) with the types and shapes of the arrays `like`."""
    tensors, place = [], 0
    for array in like:
        dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
        tensors.append(packed[place : place + array.nbytes].view(dtype).view(array.shape))
        place += _aligned(array.nbytes)
    return tensors


def _aligned(length: int) -> int:
    return math.ceil(length / ALIGNMENT) * ALIGNMENT
