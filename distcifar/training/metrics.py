"""Exact sums over samples, reduced over ranks once; and the names under which metrics are recorded."""

from dataclasses import dataclass

import torch
from torch import Tensor

from distcifar.world import World

TRAIN_LOSS = "train/loss"
TRAIN_ACCURACY = "train/accuracy"
LEARNING_RATE = "train/lr"
GRADIENT_NORM = "train/grad_norm"
IMAGES_PER_SECOND = "perf/images_per_s"
DATA_WAIT = "perf/data_wait"
MEMORY = "perf/memory_bytes"


class Tally:
    """Sums of loss, correct predictions and samples on the device: means of means would be wrong."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)

    def add(self, losses: Tensor, correct: Tensor) -> None:
        """Adds per-sample losses float [n] and hits bool [n]."""
        count = losses.new_full((), len(losses))  # made on the device: a copy from the host would wait for it
        self.sums += torch.stack([losses.sum(), correct.sum(), count]).to(self.sums)

    def over_ranks(self, world: World) -> tuple[float, float, int]:
        """Mean loss, accuracy 0-1 and number of samples over all ranks. A collective."""
        loss, correct, count = world.sum(self.sums.clone()).tolist()
        return loss / max(count, 1), correct / max(count, 1), int(count)


@dataclass(frozen=True)
class Evaluation:
    """A split measured once, over all ranks."""

    loss: float
    accuracy: float  # 0-1
    confusion: Tensor  # int64 [classes, classes] on the CPU: rows are true classes, columns predictions

    @property
    def count(self) -> int:
        """Number of samples."""
        return int(self.confusion.sum())

    @property
    def per_class(self) -> list[float | None]:
        """Accuracy within each true class; None for a class without samples."""
        pairs = zip(self.confusion.diag().tolist(), self.confusion.sum(dim=1).tolist(), strict=True)
        return [hits / count if count else None for hits, count in pairs]
