"""Initial weights other than torch's own."""

import torch
from torch import Tensor, nn

from distcifar.config import ModelConfig


def initialise(model: nn.Module, config: ModelConfig) -> None:
    """Draws or sets the weights again as `config.init` says. Frozen layers keep theirs."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer.weight.requires_grad:
            if config.init == "xavier":
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
            elif config.init == "dirac" and isinstance(layer, nn.Conv2d):
                identity_filters(layer.weight)


def identity_filters(weight: Tensor) -> None:
    """Makes the first min(O, I) filters of a convolution [O, I, K, K] hand on their input channel, in place.

    The other filters stay random, so the layer starts as "what was there, and something new" (airbench94). An
    even kernel has no centre and is left alone.
    """
    outputs, inputs, height, width = weight.shape
    if height != width or height % 2 == 0:
        return
    same = torch.arange(min(outputs, inputs))
    with torch.no_grad():
        weight[: len(same)] = 0
        weight[same, same, height // 2, width // 2] = 1
