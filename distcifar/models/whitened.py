"""whitened: a small fast net whose first layer is computed from the data instead of learnt.

The family of airbench94 (K. Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", arXiv
2404.00498), which goes back to hlb-CIFAR10 (tysam-code) and David Page. Neighbouring pixels are
highly correlated; where the first layer removes that, the rest learns in about half the epochs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distcifar.config import ModelConfig
from distcifar.models.net import GlobalMax, Net, Scale, Shortcut, require_size
from distcifar.models.normed import NormedSequential

PATCH = 2
EPSILON = 5e-4  # keeps directions of (almost) no variance from being blown up
NORM_MOMENTUM = 0.4  # fast running statistics: such nets train for a few hundred steps only
PART = 250  # images whose patches are in memory at once
HEAD_SCALE = 1 / 9  # starts the logits near 0, so that the head can take the same learning rate as the body


class WhitenedNet(Net):
    """[N, C, H, W] -> whitening [N, 8C, H-1, W-1] -> blocks, each halving -> global maximum -> logits."""

    body: nn.Sequential  # its first layer whitens

    def initialise_from(self, images: Tensor) -> None:
        """Sets the whitening weights from training images [N, C, H, W], normalised as in training.

        A few thousand images are enough. Raises nothing; constant images give finite weights, too.
        """
        whiten = self.body[0]
        assert isinstance(whiten, nn.Conv2d)
        filters = whitening_filters(images)
        with torch.no_grad():
            whiten.weight.copy_(torch.cat([filters, -filters]))  # both signs: GELU would lose one of them


class PooledConv(nn.Conv2d):
    """A 3x3 convolution with one pixel of padding, for a pool of 2 behind it: an odd last row and column are left out.

    That pool would drop them. The maps of 32-pixel images have 31, 15 and 7 pixels a side here: that is 11 % of the
    net's arithmetic and, on a CPU, 3 % of its time.
    """

    def forward(self, maps: Tensor) -> Tensor:  # [N, I, H, W] -> [N, O, H or H-1, W or W-1], whichever is even
        height, width = maps.shape[2:]
        if height % 2 == 0 and width % 2 == 0:
            return super().forward(maps)
        padded = F.pad(maps, (1, 1 - width % 2, 1, 1 - height % 2))
        return F.conv2d(padded, self.weight)


def whitened(config: ModelConfig, *, channels: int, size: int, num_classes: int) -> WhitenedNet:
    """Whitening convolution, one block per width, global maximum, linear head without bias.

    Uses widths, init and blocks: the convolutions of a block; from three on they have a residual. Call
    `initialise_from` (models.initialise_from_data) before training.
    """
    require_size("whitened", size, 2 ** len(config.widths) + PATCH - 1)
    layers: list[nn.Module] = [_whitening(channels), nn.GELU()]
    inputs = 2 * channels * PATCH**2
    for width in config.widths:
        layers.append(_block(inputs, width, config.blocks))
        inputs = width
    body = nn.Sequential(*layers, GlobalMax(), Scale(HEAD_SCALE))
    return WhitenedNet(body, nn.Linear(inputs, num_classes, bias=False))


def whitening_filters(images: Tensor) -> Tensor:
    """Filters [C*4, C, 2, 2] whose outputs on the 2x2 patches of `images` [N, C, H, W] have covariance 1.

    They are the eigenvectors of the patches' covariance, strongest first, each divided by the square root of
    its eigenvalue.
    """
    channels = images.shape[1]
    values, vectors = torch.linalg.eigh(_patch_covariance(images))
    filters = (vectors / (values.clamp(min=0) + EPSILON).sqrt()).T.flip(0)
    # An eigenvector's sign is free: fix it, so that another LAPACK gives the same net.
    largest = filters.gather(1, filters.abs().argmax(dim=1, keepdim=True))
    return (filters * largest.sign()).reshape(-1, channels, PATCH, PATCH).float()


def _patch_covariance(images: Tensor) -> Tensor:
    """Covariance of the 2x2 patches of `images` [N, C, H, W]: float64 [C*4, C*4].

    On the CPU and in double: every device and rank then finds the same. A part of the images at a time: the patches of
    all are sixteen times as large as the images, and would be the most memory that a small net's training takes.
    """
    total, products, count = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64), 0
    for part in images.cpu().split(PART):
        patches = part.double().unfold(2, PATCH, 1).unfold(3, PATCH, 1)  # [n, C, H-1, W-1, 2, 2]
        patches = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, images.shape[1] * PATCH**2)
        total = total + patches.sum(0)
        products = products + patches.T @ patches
        count += len(patches)
    mean = total / count
    return (products - count * torch.outer(mean, mean)) / max(count - 1, 1)


def _whitening(channels: int) -> nn.Conv2d:
    """The frozen convolution; its bias learns."""
    layer = nn.Conv2d(channels, 2 * channels * PATCH**2, PATCH)
    layer.weight.requires_grad = False
    return layer


def _block(inputs: int, outputs: int, depth: int) -> nn.Sequential:
    """`depth` convolutions with norm and GELU, the first one pooled: [N, inputs, H, W] -> [N, outputs, H/2, W/2].

    From three on the others are a residual to the first (airbench96): deeper without it learns more slowly.
    """
    first = PooledConv(inputs, outputs, 3, padding=1, bias=False)
    pool = nn.MaxPool2d(2)  # before norm and GELU: a quarter of their work
    rest: list[nn.Module] = []
    for _ in range(depth - 1):
        rest += [nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), _norm(outputs), nn.GELU()]
    if depth > 2:
        rest = [Shortcut(NormedSequential(*rest[:-1])), nn.GELU()]
    return NormedSequential(first, pool, _norm(outputs), nn.GELU(), *rest)


def _norm(channels: int) -> nn.BatchNorm2d:
    """BatchNorm whose scale stays 1: the next convolution can scale as well, only the biases learn."""
    norm = nn.BatchNorm2d(channels, momentum=NORM_MOMENTUM)
    norm.weight.requires_grad = False
    return norm
