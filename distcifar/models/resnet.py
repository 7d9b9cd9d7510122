"""resnet: residual nets with a stem for small images; resnet-d2l: the ResNet-18 of note S3 as it was coded.

The residual block is He et al. 2015, "Deep Residual Learning for Image Recognition", figure 2.
"""

from torch import Tensor, nn
from torch.nn import functional

from distcifar.config import ModelConfig
from distcifar.models.net import Net, require_size


class Residual(nn.Module):
    """Two 3x3 convolutions with BatchNorm, added to a shortcut: [N, C, H, W] -> [N, D, H/stride, W/stride].

    The shortcut is the identity where the shape stays, else a 1x1 convolution, with BatchNorm unless `d2l`.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, *, d2l: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=d2l)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=d2l)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            project = nn.Conv2d(inputs, outputs, 1, stride, bias=d2l)
            self.shortcut = project if d2l else nn.Sequential(project, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return functional.relu(y + self.shortcut(x))


def resnet(config: ModelConfig, *, channels: int, size: int, num_classes: int) -> Net:
    """CIFAR ResNet: 3x3 stem at full resolution, `blocks` per stage, each later stage at half the resolution.

    Uses widths, blocks, stem_pool, init. With widths 64 128 256 512, colour and 10 classes: 4,903,242
    parameters with one block per stage (S0, S1), 11,173,962 with two (ResNet-18). Any image size will do:
    halving rounds up.
    """
    width = config.widths[0]
    stem: list[nn.Module] = [
        nn.Conv2d(channels, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        *([nn.MaxPool2d(3, stride=2, padding=1)] if config.stem_pool else []),  # before the ReLU, as in cnn.py
        nn.ReLU(),
    ]
    stages = _stages(config.widths, config.blocks, d2l=False)
    return _assemble(stem, stages, config.widths[-1], num_classes)


def resnet_d2l(config: ModelConfig, *, channels: int, size: int, num_classes: int) -> Net:
    """ResNet-18 of note S3, after the book Dive into Deep Learning: 11,184,650 parameters (10 classes).

    Uses init. As its code has it, and unlike its text: stem 7x7 stride 2 padding 2, max-pool 2x2 padding 1
    (32 -> 15 -> 8 pixels), convolutions with bias, shortcuts without BatchNorm.
    """
    require_size("resnet-d2l", size, 3)
    stem: list[nn.Module] = [
        nn.Conv2d(channels, 64, 7, stride=2, padding=2),
        nn.BatchNorm2d(64),
        nn.MaxPool2d(2, stride=2, padding=1),  # before the ReLU, as in cnn.py
        nn.ReLU(),
    ]
    return _assemble(stem, _stages((64, 128, 256, 512), 2, d2l=True), 512, num_classes)


def _stages(widths: tuple[int, ...], blocks: int, *, d2l: bool) -> list[nn.Module]:
    """A Sequential of residual blocks for each width; every one but the first starts by halving the map."""
    stages: list[nn.Module] = []
    inputs = widths[0]
    for number, width in enumerate(widths):
        first = Residual(inputs, width, stride=1 if number == 0 else 2, d2l=d2l)
        rest = [Residual(width, width, stride=1, d2l=d2l) for _ in range(blocks - 1)]
        stages.append(nn.Sequential(first, *rest))
        inputs = width
    return stages


def _assemble(stem: list[nn.Module], stages: list[nn.Module], width: int, num_classes: int) -> Net:
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]  # [N, width, h, w] -> [N, width]
    return Net(nn.Sequential(nn.Sequential(*stem), *stages, *pool), nn.Linear(width, num_classes))
