"""BatchNorm and GELU, after a 2x2 pool or without, as one operation where a CPU trains in bf16."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distcifar.models import winograd
from distcifar.models.bf16 import bits_of


class NormedSequential(nn.Sequential):
    """A chain in which [nn.MaxPool2d(2),] nn.BatchNorm2d, nn.GELU() run as one where `fits` allows it.

    So do a 3x3 convolution and its pool where `winograd.fits`. Modules and weights are those of nn.Sequential, and so
    are the results but for roundings to bf16.
    """

    def forward(self, maps: Tensor) -> Tensor:  # [N, C, H, W]
        layers = list(self)
        while layers:
            match layers:
                case [nn.Conv2d() as conv, nn.MaxPool2d(), *rest] if winograd.fits(maps, conv):
                    maps = winograd.convolve(maps, conv.weight, pools=True)
                case [nn.Conv2d() as conv, *rest] if winograd.fits(maps, conv):
                    maps = winograd.convolve(maps, conv.weight, pools=False)
                case [nn.MaxPool2d(), nn.BatchNorm2d() as norm, nn.GELU(), *rest] if fits(maps, norm, pools=True):
                    maps = norm_and_gelu(maps, norm, pools=True)
                case [nn.BatchNorm2d() as norm, nn.GELU(), *rest] if fits(maps, norm, pools=False):
                    maps = norm_and_gelu(maps, norm, pools=False)
                case [layer, *rest]:
                    maps = layer(maps)
            layers = rest
        return maps


def fits(maps: Tensor, norm: nn.BatchNorm2d, *, pools: bool) -> bool:
    """Whether `norm_and_gelu` can do it: training on a CPU in bf16, even sides to pool, a scale that does not learn."""
    even = maps.shape[2] % 2 == 0 and maps.shape[3] % 2 == 0
    plain = maps.device.type == "cpu" and maps.dtype == torch.bfloat16 and not torch.compiler.is_compiling()
    trains = norm.training and torch.is_grad_enabled() and not norm.weight.requires_grad
    return plain and trains and (even or not pools) and norm.momentum is not None


def norm_and_gelu(maps: Tensor, norm: nn.BatchNorm2d, *, pools: bool) -> Tensor:
    """GELU(norm(max_pool2d(maps, 2) or maps)): bf16 [N, C, H, W] -> the same or [N, C, H/2, W/2], channels_last.

    Updates the norm's running statistics. Raises ValueError where a channel has one value only, as torch does.
    """
    result: Tensor = _NormAndGelu.apply(maps, norm.bias, norm, pools)
    return result


class _NormAndGelu(torch.autograd.Function):
    """Ioffe, Szegedy 2015 (BatchNorm, its gradient) and Hendrycks, Gimpel 2016 (GELU), by models/norm_kernel.py."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, bias: Tensor, norm: nn.BatchNorm2d, pools: bool) -> Tensor:  # noqa: FBT001
        from distcifar.models import norm_kernel  # numba takes half a second

        inner = maps.permute(0, 2, 3, 1).contiguous()  # no copy where the maps are channels_last
        n, height, width, channels = inner.shape
        if pools:
            height, width = height // 2, width // 2
        lines, count = (n, height, width * channels), n * height * width
        if count < 2:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {list(maps.shape)}")
        pivot = inner[0, 0, 0].float().numpy()
        sums = np.zeros((n, 2, channels), np.float32)
        if pools:
            kept, places = np.empty(lines, np.uint16), np.empty(lines, np.uint8)
            norm_kernel.pool(bits_of(inner).reshape(n, 2 * height, -1), kept, places, np.tile(pivot, width), sums)
        else:
            kept, places = bits_of(inner).reshape(lines), None
            norm_kernel.measure(kept, np.tile(pivot, width), sums)
        off, squares = sums.sum(0, dtype=np.float64) / count
        with np.errstate(invalid="ignore"):  # a diverging run is told by training/divergence.py
            mean, variance = pivot + off, np.maximum(squares - off**2, 0.0)
        _note_statistics(norm, mean, variance * count / (count - 1))
        scale = norm.weight.numpy() / np.sqrt(variance + norm.eps)
        affine = (_line(scale, width), _line(bias.detach().numpy() - mean * scale, width))
        out = torch.empty((n, height, width, channels), dtype=maps.dtype)
        norm_kernel.activate(kept, affine[0], affine[1], bits_of(out).reshape(lines))
        ctx.kept, ctx.places, ctx.affine, ctx.width = kept, places, affine, width
        ctx.statistics = scale, mean, variance + norm.eps
        return out.permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor, Tensor, None, None]:
        from distcifar.models import norm_kernel

        kept, places, width, (scale, mean, variance) = ctx.kept, ctx.places, ctx.width, ctx.statistics
        n, height, _ = kept.shape
        channels = len(scale)
        slopes = np.empty_like(kept)
        sums = np.zeros((n, 2, channels), np.float32)
        result = bits_of(given.permute(0, 2, 3, 1).contiguous()).reshape(kept.shape)
        norm_kernel.activation_gradient(kept, ctx.affine[0], ctx.affine[1], result, slopes, sums)
        total, products = sums.sum(0, dtype=np.float64)
        # scale * (slope - mean of slopes - (value - mean) * covariance / variance), as one line in slope and value
        count = n * height * width
        by_value = -scale * (products - mean * total) / count / variance
        parts = np.stack([_line(part, width) for part in (scale, by_value, -scale * total / count - by_value * mean)])
        side = 1 if places is None else 2
        maps = torch.empty((n, side * height, side * width, channels), dtype=given.dtype)
        lines = bits_of(maps).reshape(n, side * height, -1)
        if places is None:
            norm_kernel.norm_gradient(kept, slopes, parts, lines)
        else:
            norm_kernel.pool_gradient(kept, places, slopes, parts, channels, lines)
        return maps.permute(0, 3, 1, 2), torch.from_numpy(total.astype(np.float32)), None, None


def _line(by_channel: NDArray[np.float64], width: int) -> NDArray[np.float32]:
    """float64 [C] for each place of a row: float32 [width * C]."""
    return np.tile(by_channel.astype(np.float32), width)


def compile_kernels() -> None:
    """Has numba compile these kernels and Winograd's and keep them on disk, for the first run's sake (.ci/setup)."""
    for pools in (False, True):
        maps = torch.ones(2, 1, 2, 2, dtype=torch.bfloat16, requires_grad=True)
        norm = nn.BatchNorm2d(1).requires_grad_(requires_grad=False)
        norm_and_gelu(maps, norm, pools=pools).sum().backward()
        winograd.convolve(maps, torch.ones(1, 1, 3, 3, requires_grad=True), pools=pools).sum().backward()


def _note_statistics(norm: nn.BatchNorm2d, mean: NDArray[np.float64], variance: NDArray[np.float64]) -> None:
    """Moves the running statistics by the norm's momentum, as torch does."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    with torch.no_grad():
        for running, found in ((norm.running_mean, mean), (norm.running_var, variance)):
            running.lerp_(torch.from_numpy(found.astype(np.float32)), norm.momentum or 0.0)
        norm.num_batches_tracked += 1
