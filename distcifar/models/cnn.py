"""cnn: plain convolutions and max-pools, then hidden layers. The first nets of notes S0 to S4."""

from torch import nn

from distcifar.config import ModelConfig
from distcifar.models.net import Net, require_size

POOL = "M"


def cnn(config: ModelConfig, *, channels: int, size: int, num_classes: int) -> Net:
    """`layout` as conv-(bn)-relu units and 2x2 max-pools, then `hidden` as linear-relu-dropout.

    Uses layout, kernel, padding, batchnorm, hidden, dropout, init. The pool comes before the ReLU, unlike in the
    users' code: a maximum and ReLU commute, so do their gradients, and ReLU has a quarter of the work so.
    """
    require_size("this cnn", size, least_size(config))
    layers: list[nn.Module] = []
    for item in config.layout:
        if item == POOL:
            after_relu = bool(layers) and isinstance(layers[-1], nn.ReLU)
            layers.insert(len(layers) - after_relu, nn.MaxPool2d(2))
        else:
            layers += _convolution(config, channels, int(item))
            channels = int(item)
        size = _map_size(config, item, size)
    layers.append(nn.Flatten())  # [N, channels, size, size] -> [N, channels * size * size]
    width = channels * size * size
    for hidden in config.hidden:
        layers += [nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(config.dropout)]
        width = hidden
    return Net(nn.Sequential(*layers), nn.Linear(width, num_classes))


def least_size(config: ModelConfig) -> int:
    """The smallest image, in pixels, that leaves every layer a map: counted from the last layer back."""
    size = 1
    for item in reversed(config.layout):
        size = 2 * size if item == POOL else size - 1 + config.kernel - 2 * config.padding
        size = max(size, 1)
    return size


def _map_size(config: ModelConfig, item: str, size: int) -> int:
    """Side of the map after one item of the layout."""
    return size // 2 if item == POOL else size + 1 - config.kernel + 2 * config.padding


def _convolution(config: ModelConfig, inputs: int, outputs: int) -> list[nn.Module]:
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, config.kernel, padding=config.padding)]
    if config.batchnorm:
        layers.append(nn.BatchNorm2d(outputs))
    return [*layers, nn.ReLU()]
