"""What a net takes, counted: bytes of its state, what one image leaves for the backward pass, arithmetic."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from distcifar.cluster.estimates.estimate import Workload
from distcifar.data.prepare import PreparedData
from distcifar.training.state import TrainState
from distcifar.training.step import Losses, autocast

COUNTED_IMAGES = (4, 8)


def workload(data: PreparedData, state: TrainState, images: Tensor, *, resident: bool) -> Workload:
    """Of a state that has done a step, so that its optimizers hold what they need. images: float [N, C, S, S]."""
    counts = {split: manifest.num_samples for split, manifest in data.manifests.items()}
    slots = (slot for optimizer in state.optimizers for slots in optimizer.state.values() for slot in slots.values())
    images = images[: max(COUNTED_IMAGES)]
    return Workload(
        images=counts["train"],
        validation=counts.get("val", 0),
        test=counts["test"],
        pixel_bytes=sum(manifest.pixel_bytes for manifest in data.manifests.values()),
        file_bytes=sum(path.stat().st_size for path in data.folder.iterdir()),
        resident=resident,
        parameters=sum(parameter.numel() for parameter in state.model.parameters()),
        model_bytes=_bytes(state.model.state_dict().values()),
        optimizer_bytes=_bytes(slot for slot in slots if isinstance(slot, Tensor)),
        activation_bytes=bytes_an_image(state.model, images, state.progress.precision),
        flops=forward_flops(state.model, images) / len(images),
    )


def bytes_an_image(model: nn.Module, images: Tensor, precision: str) -> float:
    """What each more image adds to activation_bytes.

    A difference, for some of it is kept once whatever the number of images: the weights' copies of half precision.
    """
    few, many = COUNTED_IMAGES
    several = images[torch.arange(many, device=images.device) % len(images)]
    kept = [activation_bytes(model, several[:count], precision) for count in COUNTED_IMAGES]
    return (kept[1] - kept[0]) / (many - few)


def activation_bytes(model: nn.Module, images: Tensor, precision: str) -> float:
    """What a forward pass in training mode keeps for the backward pass, apart from the parameters; and the images."""
    held: dict[int, Tensor] = {}

    def hold(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    labels = torch.zeros(len(images), dtype=torch.long, device=images.device)
    hooks = torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor)
    with hooks, autocast(images.device, precision):
        losses, _ = Losses(model).train()(images, labels, None, None, 0.0)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    held[images.untyped_storage().data_ptr()] = images
    sizes = (tensor.numel() * tensor.element_size() for place, tensor in held.items() if place not in own)
    del losses
    return float(sum(sizes))


def forward_flops(model: nn.Module, images: Tensor) -> float:
    """Operations of a forward pass in convolutions and linear layers, an addition and a multiplication each two."""
    found: list[float] = []

    def count(layer: nn.Module, _: Any, output: Tensor) -> None:
        if isinstance(layer, nn.Conv2d):
            found.append(2.0 * output.numel() * layer.in_channels // layer.groups * math.prod(layer.kernel_size))
        elif isinstance(layer, nn.Linear):
            found.append(2.0 * output.numel() * layer.in_features)

    handles = [layer.register_forward_hook(count) for layer in model.modules()]
    try:
        with torch.no_grad():
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return sum(found)


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
