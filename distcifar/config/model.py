"""ModelConfig: which network, and its first weights."""

from dataclasses import dataclass
from typing import Literal

from distcifar.config.values import conform, require, require_choice, require_range

ModelName = Literal[
    "linear",
    "mlp",
    "cnn",
    "resnet",
    "resnet-d2l",
    "whitened",
    "torchvision-resnet18",
    "torchvision-vgg13_bn",
]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network. Fields that the chosen family does not use are ignored by it (models/ says which)."""

    name: ModelName = "resnet"
    """Family: linear, mlp, cnn, resnet, resnet-d2l, whitened, or a pretrained torchvision net."""
    layout: tuple[str, ...] = ()
    """cnn: convolutions by output channels, and M for a 2x2 max-pool: 32 M 64 M."""
    kernel: int = 3
    """cnn: convolution kernel size in pixels."""
    padding: int = 1
    """cnn: zero padding of each convolution in pixels."""
    batchnorm: bool = True
    """cnn: BatchNorm after each convolution."""
    widths: tuple[int, ...] = (64, 128, 256, 512)
    """resnet, whitened: channels of each stage."""
    blocks: int = 2
    """resnet: residual blocks per stage; whitened: convolutions per block, 3 and more with a residual."""
    stem_pool: bool = False
    """resnet: 3x3 stride-2 max-pool after the first convolution (halves every later map)."""
    hidden: tuple[int, ...] = ()
    """mlp, cnn: sizes of the fully connected hidden layers."""
    dropout: float = 0.0
    """mlp, cnn: dropout probability (mlp: after the first two hidden layers; cnn: after each)."""
    init: Literal["default", "xavier", "dirac"] = "default"
    """Initial weights: torch's own, Xavier-uniform, or identity-like convolutions."""
    pretrained: bool = False
    """torchvision nets: start from ImageNet weights."""
    weights: str = ""
    """torchvision nets: a local weight file (.pth or .safetensors) instead of the download."""
    freeze: bool = False
    """torchvision nets: the feature extractor does not learn."""
    freeze_bn_stats: bool = False
    """Frozen features: also keep BatchNorm's running statistics as they were."""

    def __post_init__(self) -> None:
        conform(self, "model")
        require_choice("model.name", self.name, ModelName.__args__)  # type: ignore[attr-defined]
        require_range("model.dropout", self.dropout, 0.0, 0.95)
        require_range("model.kernel", self.kernel, 1, 15)
        require_range("model.padding", self.padding, 0, 15)
        require_range("model.blocks", self.blocks, 1, 64)
        for size in (*self.widths, *self.hidden):
            require_range("model.widths/hidden", size, 1, 65536)
        for item in self.layout:
            require(
                item == "M" or (item.isdecimal() and int(item) > 0),
                f"model.layout has {item!r}",
                "Each item is a channel count or M",
                "Write, for example, --model.layout 32 M 64 M",
            )
        require(
            not (self.freeze and not self.pretrained),
            "model.freeze is set without model.pretrained",
            "Frozen features must come from pretrained weights",
            "Add --model.pretrained, or drop --model.freeze",
        )
