"""build_model(config): image classifiers in pure torch, a file per family; each names the fields it uses."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from distcifar.config import ModelConfig
from distcifar.errors import ConfigError
from distcifar.models.cnn import cnn
from distcifar.models.initial import initialise
from distcifar.models.mlp import linear, mlp
from distcifar.models.net import Net
from distcifar.models.resnet import resnet, resnet_d2l
from distcifar.models.torchvision_nets import torchvision_net
from distcifar.models.whitened import WhitenedNet, whitened

__all__ = ["FAMILIES", "Net", "build_model", "count_parameters", "frozen_norms", "initialise_from_data"]

FAMILIES: dict[str, Callable[..., Net]] = {
    "linear": linear,
    "mlp": mlp,
    "cnn": cnn,
    "resnet": resnet,
    "resnet-d2l": resnet_d2l,
    "whitened": whitened,
    "torchvision-resnet18": torchvision_net,
    "torchvision-vgg13_bn": torchvision_net,
}


def build_model(config: ModelConfig, *, channels: int, size: int, num_classes: int) -> Net:
    """The net that maps float images [N, channels, size, size] to logits [N, num_classes].

    Draws its weights from torch's global generator: seed that first. `model.head` is the last layer.
    Raises ConfigError where net and images do not go together, DataError where pretrained weights are not to
    be had.
    """
    build = FAMILIES[config.name]
    pretrained = config.pretrained or config.weights
    if pretrained and build is not torchvision_net:
        raise ConfigError(
            f"model.pretrained or model.weights is set and the model is {config.name}",
            "Only torchvision's nets have pretrained weights",
            "Take --model.name torchvision-resnet18, or drop these two settings",
        )
    model = build(config, channels=channels, size=size, num_classes=num_classes)
    if not pretrained:
        initialise(model, config)
    return model


def initialise_from_data(model: nn.Module, images: Tensor) -> None:
    """Lets a model that starts from the data do so; does nothing for the others.

    `images` [N, C, H, W] are a few thousand training images, normalised as in training. The same images give
    the same weights on every rank.
    """
    if isinstance(model, WhitenedNet):
        model.initialise_from(images)


def frozen_norms(model: Net, config: ModelConfig) -> list[nn.Module]:
    """The BatchNorm layers to put back into eval mode after every `model.train()`.

    Frozen weights alone do not stop their running statistics from following the training images.
    """
    if not (config.freeze and config.freeze_bn_stats):
        return []
    return [layer for layer in model.body.modules() if isinstance(layer, _BatchNorm)]


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Numbers of all parameters, and of those that learn."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, learns in sizes if learns)
