"""linear and mlp: nets that see the image as one long vector."""

from torch import nn

from distcifar.config import ModelConfig
from distcifar.models.net import Net

DROPOUT_LAYERS = 2


def linear(config: ModelConfig, *, channels: int, size: int, num_classes: int) -> Net:
    """Softmax regression: one linear layer on all pixels (note S2). Uses init."""
    return Net(nn.Flatten(), nn.Linear(channels * size * size, num_classes))


def mlp(config: ModelConfig, *, channels: int, size: int, num_classes: int) -> Net:
    """Hidden layers with ReLU; dropout after the first two only, as the nets of S2 and S4 have it.

    Uses hidden, dropout, init.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    width = channels * size * size
    for number, hidden in enumerate(config.hidden):
        layers += [nn.Linear(width, hidden), nn.ReLU()]
        if number < DROPOUT_LAYERS:
            layers.append(nn.Dropout(config.dropout))
        width = hidden
    return Net(nn.Sequential(*layers), nn.Linear(width, num_classes))
