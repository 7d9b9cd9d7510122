"""3x3 convolutions by Winograd's F(4x4, 3x3), with the 2x2 pool behind them or without, where a CPU runs in bf16."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distcifar.models.bf16 import Bits, bits_of

TILE, PLACES = 4, 36  # results of a tile a side; products for one
PART = 1024  # tiles at a time: products of fewer are slow, more of them take more memory and no less time
SIDE, INPUTS, OUTPUTS = 3, 32, 64  # below them torch is as fast (docs/performance.md)


def convolve(maps: Tensor, weight: Tensor, *, pools: bool) -> Tensor:
    """conv2d(maps, weight, padding=1) and, where it `pools`, max_pool2d(..., 2) of it, as one.

    maps: bf16 [N, I, H, W]; weight: fp32 [O, I, 3, 3]. Returns bf16 [N, O, H, W] or [N, O, H // 2, W // 2],
    channels_last. Its roundings make it 1.3 % of its norm off, those of a convolution in bf16 0.2 %.
    """
    result: Tensor = _Winograd.apply(maps, weight, pools)
    return result


def fits(maps: Tensor, layer: nn.Module) -> bool:
    """Whether `convolve` does what `layer` does, and sooner: 3x3, on maps that are large enough, in bf16 on a CPU."""
    if not isinstance(layer, nn.Conv2d) or maps.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    bf16 = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == maps.dtype == torch.bfloat16
    plain = layer.kernel_size == (3, 3) and layer.stride == layer.dilation == layer.padding == (1, 1)
    own = layer.groups == 1 and layer.bias is None and layer.padding_mode == "zeros"
    large = min(maps.shape[2:]) >= SIDE and layer.in_channels >= INPUTS and layer.out_channels >= OUTPUTS
    return bf16 and plain and own and large


@dataclass(frozen=True)
class _Shapes:
    images: int
    height: int
    width: int
    inputs: int
    outputs: int
    pools: bool

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tiles, the last of which may reach beyond the map."""
        side = TILE // 2 if self.pools else TILE
        return -(-self.made[1] // side), -(-self.made[2] // side)

    @property
    def made(self) -> tuple[int, int, int, int]:
        side = 2 if self.pools else 1
        return self.images, self.height // side, self.width // side, self.outputs

    @property
    def parts(self) -> list[slice]:
        rows, columns = self.grid
        step = max(PART // (rows * columns), 1)
        return [slice(first, min(first + step, self.images)) for first in range(0, self.images, step)]

    def tiles(self, part: slice, channels: int) -> Tensor:
        rows, columns = self.grid
        return torch.empty(PLACES, (part.stop - part.start) * rows * columns, channels, dtype=torch.bfloat16)


class _Winograd(torch.autograd.Function):
    """Lavin, Gray 2016 (arXiv 1509.09308), by models/winograd_kernel.py; the gradients are the transposed steps."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, pools: bool) -> Tensor:  # noqa: FBT001
        from distcifar.models import winograd_filter_kernel as filtering  # numba takes half a second
        from distcifar.models import winograd_kernel as kernel
        from distcifar.models import winograd_result_kernel as results

        inner, (outputs, inputs) = maps.permute(0, 2, 3, 1).contiguous(), weight.shape[:2]
        images, height, width, _ = inner.shape
        shapes = _Shapes(images, height, width, inputs, outputs, pools)
        out = torch.empty(shapes.made, dtype=maps.dtype)
        given, made = _lines(inner), _lines(out)
        places = np.empty(made.shape if pools else 0, np.uint8)
        spread = torch.empty(PLACES, outputs, inputs, dtype=maps.dtype)
        filtering.tiles_of_filters(_nine(weight.detach()).numpy(), bits_of(spread))
        kept = []
        for part in shapes.parts:
            tiles = shapes.tiles(part, inputs)
            kernel.tiles_of_maps(given[part], inputs, *shapes.grid, _planes(tiles))
            products = _planes(torch.bmm(tiles, spread.transpose(1, 2)))
            if pools:
                results.maxima_of_tiles(products, outputs, *shapes.grid, made[part], places[part])
            else:
                results.maps_of_tiles(products, outputs, *shapes.grid, made[part])
            if ctx.needs_input_grad[1]:
                kept.append(tiles)
        ctx.shapes, ctx.kept, ctx.places, ctx.filters = shapes, kept, places, spread
        return out.permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        from distcifar.models import winograd_filter_kernel as filtering
        from distcifar.models import winograd_kernel as kernel
        from distcifar.models import winograd_result_kernel as results

        shapes: _Shapes = ctx.shapes
        wants_maps, wants_weight, _ = ctx.needs_input_grad
        inputs, outputs, parts = shapes.inputs, shapes.outputs, shapes.parts
        given = _lines(gradient.permute(0, 2, 3, 1).contiguous())
        maps = torch.empty(shapes.images, shapes.height, shapes.width, inputs, dtype=gradient.dtype)
        made = _lines(maps)
        products = torch.empty(len(parts), PLACES, outputs, inputs, dtype=gradient.dtype)
        for number, part in enumerate(parts):
            tiles = shapes.tiles(part, outputs)
            if shapes.pools:
                results.tiles_of_maxima(given[part], ctx.places[part], outputs, *shapes.grid, _planes(tiles))
            else:
                results.tiles_of_gradients(given[part], outputs, *shapes.grid, _planes(tiles))
            if wants_weight:
                torch.bmm(tiles.transpose(1, 2), ctx.kept[number], out=products[number])
            if wants_maps:
                back = _planes(torch.bmm(tiles, ctx.filters))
                kernel.maps_of_gradients(back, inputs, *shapes.grid, made[part])
        weight = torch.empty(outputs, 3, 3, inputs)
        if wants_weight:
            filtering.filters_of_gradients(bits_of(products), weight.numpy().reshape(outputs, 9, inputs))
        return (
            maps.permute(0, 3, 1, 2) if wants_maps else None,
            weight.permute(0, 3, 1, 2) if wants_weight else None,
            None,
        )


def _lines(maps: Tensor) -> Bits:
    """[N, H, W, C] as bits [N, H, W * C]."""
    images, height, width, channels = maps.shape
    return bits_of(maps).reshape(images, height, width * channels)


def _planes(tiles: Tensor) -> Bits:
    """[36, T, C] as bits [36, T * C]."""
    return bits_of(tiles).reshape(PLACES, -1)


def _nine(weight: Tensor) -> Tensor:
    """[O, I, 3, 3] as [O, 9, I]; no copy where it lies channels_last."""
    outputs, inputs = weight.shape[:2]
    return weight.permute(0, 2, 3, 1).reshape(outputs, 9, inputs).contiguous()
