"""torchvision-resnet18 and torchvision-vgg13_bn: ImageNet nets to fine-tune, as in note S3."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from distcifar.config import ModelConfig
from distcifar.errors import ConfigError, DataError
from distcifar.models.net import Net, require_size

LEAST_SIZE = {"torchvision-resnet18": 1, "torchvision-vgg13_bn": 32}
LAST_LAYER = {"torchvision-resnet18": "fc", "torchvision-vgg13_bn": "classifier.6"}


def torchvision_net(config: ModelConfig, *, channels: int, size: int, num_classes: int) -> Net:
    """torchvision's net with a new last layer for `num_classes`, from ImageNet weights if `pretrained`.

    Uses pretrained, weights, freeze (the body keeps its weights) and, where untrained, init. The head of
    resnet18 is fc, that of vgg13_bn its whole classifier: what the notes train at ten times the rate.
    Parameters with 10 classes: 11,181,642, and 128,997,706 of which 119,586,826 learn if frozen.
    Raises DataError where the weights cannot be had, ConfigError for images that the net cannot take.
    """
    if channels != 3:
        raise ConfigError(
            f"The images have {channels} channel(s) and the model is {config.name}",
            "Its ImageNet weights read red, green and blue",
            "Take a net that learns from scratch (--model.name resnet)",
        )
    require_size(config.name, size, LEAST_SIZE[config.name])
    net, url = _vendor_net(config.name)
    if config.pretrained or config.weights:
        _load(net, config, url)
    model = _with_new_head(net, num_classes)
    if config.freeze:
        model.body.requires_grad_(requires_grad=False)
    return model


def _vendor_net(name: str) -> tuple[Any, str]:
    """The untrained net and the address of its best ImageNet weights."""
    from torchvision import models  # here because it takes seconds

    if name == "torchvision-resnet18":
        return models.resnet18(), models.ResNet18_Weights.DEFAULT.url
    return models.vgg13_bn(), models.VGG13_BN_Weights.DEFAULT.url


def _with_new_head(net: Any, num_classes: int) -> Net:
    """The vendor's net as body and head, its last layer replaced."""
    if hasattr(net, "fc"):
        head, net.fc = nn.Linear(net.fc.in_features, num_classes), nn.Identity()
        return Net(net, head)
    net.classifier[6] = nn.Linear(net.classifier[6].in_features, num_classes)
    return Net(nn.Sequential(net.features, net.avgpool, nn.Flatten()), net.classifier)


def _load(net: nn.Module, config: ModelConfig, url: str) -> None:
    """Fills all but the last layer from the file or the download; raises DataError that names both ways."""
    last = f"{LAST_LAYER[config.name]}."
    try:
        state = _read(config.weights) if config.weights else _download(url)
        body = {name: value for name, value in state.items() if not name.startswith(last)}
        missing, unexpected = net.load_state_dict(body, strict=False)
        missing = [name for name in missing if not name.startswith(last)]
        if missing or unexpected:
            raise ValueError(f"{len(missing)} tensors are missing and {len(unexpected)} are foreign")
    except Exception as error:  # a damaged or foreign file makes the readers raise nearly anything
        raise _no_weights(config, url, error) from error


def _read(path: str) -> dict[str, Tensor]:
    """Tensors by name from .safetensors, or from a torch file by the reader that runs no code."""
    if Path(path).suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _download(url: str) -> dict[str, Tensor]:
    """torchvision's file from torch's cache or the network, checked against the digest in its name."""
    return torch.hub.load_state_dict_from_url(
        url, map_location="cpu", progress=False, check_hash=True, weights_only=True
    )


def _no_weights(config: ModelConfig, url: str, error: Exception) -> DataError:
    reason = " ".join(str(error).split())[:300]  # torch lists every mismatch over many lines
    return DataError(
        f"The weights of {config.name} could not be taken from {config.weights or url}: {reason}",
        f"A pretrained net needs torchvision's own weights, from a file or by download from {url}",
        f"Fetch that file where there is a network and give it with --model.weights FILE"
        f"{', or drop --model.weights to download it' if config.weights else ''}",
    )
