"""Net: the one shape that every model has, a body that sees and a head that decides."""

from torch import Tensor, nn

from distcifar.errors import ConfigError


class Net(nn.Module):
    """Images [N, C, H, W] -> body -> features [N, F] -> head -> logits [N, classes].

    The head is the last layer (of vgg13_bn the whole classifier): it is the part that the optimizer gives
    `head_lr_factor`, and the only part that learns where the body is frozen.
    """

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.head = head

    def forward(self, images: Tensor) -> Tensor:  # [N, C, H, W] -> [N, classes]
        return self.head(self.body(images))


class GlobalMax(nn.Module):
    """The maximum of each map. Much faster than AdaptiveMaxPool2d(1), and never a question of sizes."""

    def forward(self, maps: Tensor) -> Tensor:  # [N, C, H, W] -> [N, C]
        return maps.amax(dim=(2, 3))


class Shortcut(nn.Module):
    """Adds what `branch` makes of its input, which keeps the shape, to the input."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, maps: Tensor) -> Tensor:  # any shape, kept
        return maps + self.branch(maps)


class Scale(nn.Module):
    """Multiplies by a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, values: Tensor) -> Tensor:  # any shape, kept
        return values * self.factor

    def extra_repr(self) -> str:
        return f"{self.factor:g}"


def require_size(net: str, size: int, least: int) -> None:
    """Raises ConfigError where images of `size` pixels are too small for `net`, which needs `least`."""
    if size < least:
        raise ConfigError(
            f"The images are {size}x{size} pixels and the model is {net}",
            f"{net} needs at least {least}x{least}: its last maps would have no pixel left",
            f"Enlarge them (--augment.resize {least}), or take a net for small images (--model.name mlp)",
        )
