"""World: which of how many ranks this is, and on which device. A value that is passed, never looked up.

The collectives here are the only place that knows a world of one: there they are the identity, and
nothing else in the package asks for the size before it talks to its peers.
"""

from dataclasses import dataclass, field
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """Rank `rank` of `size`, computing on `device` (for example torch.device("cuda:1"))."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_primary(self) -> bool:
        """Whether this rank writes the journal and the checkpoints."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The element-wise sum of `values` (any shape, on `device`) over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def only_primary(self, values: Tensor) -> Tensor:
        """A copy of `values` on rank 0, zeros elsewhere: sums that are already global are to count once."""
        return values.clone() if self.is_primary else torch.zeros_like(values)

    def any(self, flag: bool) -> bool:  # noqa: FBT001 (a collective about one flag)
        """Whether `flag` is set on at least one rank. A synchronisation point on every rank."""
        return bool(self.sum(torch.tensor(float(flag), device=self.device)).item() > 0)

    def first(self, value: T | None) -> T | None:
        """The value of the lowest rank that has one, on every rank; None if none has. Values are pickled."""
        return next((found for found in self.each(value) if found is not None), None)

    def each(self, value: T) -> list[T]:
        """The values of all ranks in their order, on every rank. Values are pickled."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def broadcast(self, values: Tensor) -> Tensor:
        """Rank 0's `values` on every rank, in place."""
        if self.size > 1:
            dist.broadcast(values, src=0)
        return values

    def barrier(self) -> None:
        """Returns once every rank has arrived here."""
        self.any(flag=False)
