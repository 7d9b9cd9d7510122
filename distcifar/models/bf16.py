"""The memory of bf16 tensors for numpy, which has no such type."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Bits = NDArray[np.uint16]


def bits_of(values: Tensor) -> Bits:
    """The bits of a bf16 tensor on the CPU, the memory shared."""
    return values.detach().view(torch.int16).numpy().view(np.uint16)
