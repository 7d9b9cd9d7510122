"""The blocks of the whitened net against the same arithmetic written out."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distcifar.config import ModelConfig
from distcifar.models import build_model
from distcifar.models.whitened import PooledConv


def written_out(net: nn.Module, images: Tensor, *, depth: int) -> Tensor:
    """Logits of a net of one block in evaluation mode, from its tensors in the order in which they were registered."""
    tensors = iter(net.state_dict().values())

    def norm(x: Tensor) -> Tensor:
        scale, bias, mean, variance, _ = (next(tensors) for _ in range(5))
        shape = (1, -1, 1, 1)
        x = (x - mean.view(shape)) / (variance.view(shape) + 1e-5).sqrt()
        return x * scale.view(shape) + bias.view(shape)

    x = F.gelu(F.conv2d(images, next(tensors), next(tensors)))
    x = F.gelu(norm(F.max_pool2d(F.conv2d(x, next(tensors), padding=1), 2)))
    first = x
    for number in range(depth - 1):
        x = norm(F.conv2d(x, next(tensors), padding=1))
        last = number == depth - 2
        x = F.gelu(x + first if last and depth > 2 else x)
    logits = x.amax((2, 3)) / 9 @ next(tensors).T
    assert next(tensors, None) is None
    return logits


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_a_block_is_what_it_says(depth: int):
    torch.manual_seed(depth)
    config = ModelConfig(name="whitened", widths=(8,), blocks=depth, init="dirac")
    net = build_model(config, channels=3, size=12, num_classes=4)
    images = torch.randn(5, 3, 12, 12)
    net.train()(images)  # statistics other than 0 and 1
    net.eval()
    torch.testing.assert_close(net(images), written_out(net, images, depth=depth), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(8, 8), (7, 7), (8, 7), (7, 8)])
def test_what_the_pool_drops_is_not_computed_and_nothing_else_changes(size: tuple[int, int]):
    torch.manual_seed(0)
    conv = PooledConv(3, 4, 3, padding=1, bias=False)
    maps = torch.randn(2, 3, *size, requires_grad=True)
    ours, whole = conv(maps), F.conv2d(maps, conv.weight, padding=1)
    assert ours.shape[2:] == tuple(side - side % 2 for side in size)
    inputs = (maps, conv.weight)
    pooled = [F.max_pool2d(made, 2) for made in (ours, whole)]
    torch.testing.assert_close(*pooled)
    torch.testing.assert_close(*(torch.autograd.grad(maxima.square().sum(), inputs) for maxima in pooled))
