"""Which training images are hard: the loss of each when it was last trained on.

An epoch over the hardest half costs half, and a net that is right about most images learns from the others. airbench96
(K. Jordan 2024) asks a second, smaller net which images of a batch are hard; the losses of the training itself cost
nothing, and the first epochs, over all images, give one to each.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distcifar.data.loader import Batch
from distcifar.data.transfer import to_device
from distcifar.world import World


@dataclass
class HardImages:
    """Part of the training state, the same on every rank. Both float32 [images] on the device; inf: never seen."""

    losses: Tensor  # the last loss of each
    before: Tensor  # the same when the current epoch began: what it goes over depends on nothing later

    @classmethod
    def unknown(cls, images: int, device: torch.device) -> "HardImages":
        """Before the first step."""
        losses = torch.full((images,), torch.inf, device=device)
        return cls(losses, losses.clone())

    def begin_epoch(self) -> None:
        """What is known now is what the epoch is chosen by."""
        self.before = self.losses.clone()

    def known(self) -> NDArray[np.float32]:
        """The losses by which the current epoch is chosen."""
        return self.before.cpu().numpy()

    def note(self, batch: Batch, losses: Tensor, world: World) -> None:
        """Takes down this rank's part `losses` (float [n]) of a global batch. A collective."""
        assert batch.global_ids is not None
        whole = losses.new_zeros(batch.total)
        whole[batch.start : batch.start + batch.counted] = losses[: batch.counted]
        ids = torch.as_tensor(to_device(batch.global_ids, self.losses.device))  # a GPU's host does not wait
        self.losses[ids] = world.sum(whole)
