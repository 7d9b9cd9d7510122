"""Pixel operations on batches: pure functions of pixels and draws (data/draws.py).

Moves (crop, flip, cutout) and normalisation by table never compute with pixel values, so every backend gives
the same bits: the numba kernel (data/kernel.py) on a CPU, gathers on a GPU. What interpolates (colour,
rotation, resized crop) runs in torch on the device and agrees within 1e-5.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from distcifar.data.draws import Colours, Drawn, Moves


def move(images: Tensor, rows: Tensor, moves: Moves, *, reflect: bool) -> Tensor:
    """Cropped and flipped pixels of `images[rows]`: uint8 [n, H, W, C].

    `images` is uint8 [N, H, W, C] (square) and `rows` int64 [n], both on one device. Without `reflect`,
    places outside the image are black (pixel 0).
    """
    size = images.shape[1]
    device = images.device
    place = torch.arange(size, device=device)
    y = place + torch.as_tensor(moves.shift_y, device=device)[:, None]
    flip = torch.as_tensor(moves.flip, device=device)[:, None]
    x = torch.where(flip, size - 1 - place, place) + torch.as_tensor(moves.shift_x, device=device)[:, None]
    if reflect:
        y, x = _reflect(y, size), _reflect(x, size)
    inside = ((y >= 0) & (y < size))[:, :, None] & ((x >= 0) & (x < size))[:, None, :]
    pixels = images[rows[:, None, None], y.clamp(0, size - 1)[:, :, None], x.clamp(0, size - 1)[:, None, :]]
    return pixels * inside[..., None]


def _reflect(place: Tensor, size: int) -> Tensor:
    """Positions mirrored at the borders without repeating the border pixel (numpy's "reflect")."""
    place = place.abs()
    return torch.where(place >= size, 2 * size - 2 - place, place)


def normalise(pixels: Tensor, table: Tensor) -> Tensor:
    """uint8 [n, H, W, C] through table float32 [C, 256] -> float32 [n, C, H, W] in channels_last memory."""
    channel = torch.arange(pixels.shape[-1], device=pixels.device)
    return table[channel, pixels.long()].permute(0, 3, 1, 2)


def cut_out(images: Tensor, moves: Moves, side: int) -> Tensor:
    """A square of `side` pixels around each sample's centre set to 0, the channel mean, in place."""
    height, width = images.shape[2:]
    low = side // 2

    def covered(centre: Drawn, length: int) -> Tensor:
        place = torch.arange(length, device=images.device)
        first = torch.as_tensor(centre, device=images.device)[:, None] - low
        return (place >= first) & (place < first + side)

    square = covered(moves.cut_y, height)[:, None, :, None] & covered(moves.cut_x, width)[:, None, None, :]
    return images.masked_fill_(square, 0.0)


def normalisation_table(mean: tuple[float, ...], std: tuple[float, ...]) -> NDArray[np.float32]:
    """Normalised value of each channel's 256 pixel values: float32 [C, 256], as (p/255 - mean)/std."""
    values = np.arange(256, dtype=np.float64) / 255
    return np.stack([(values - m) / s for m, s in zip(mean, std, strict=True)]).astype(np.float32)


def jitter(images: Tensor, colours: Colours, *, hue: bool = True) -> Tensor:
    """Brightness, contrast, saturation, hue, in this order: float [n, C, H, W] in 0..1, clamped after each.

    The arithmetic of each step is that of torchvision's ColorJitter, which draws the order anew each time. Without
    `hue` it stays as it is, whatever the draws.
    """

    def factor(values: Drawn) -> Tensor:
        return torch.as_tensor(values, device=images.device, dtype=images.dtype)[:, None, None, None]

    images = (images * factor(colours.brightness)).clamp(0, 1)
    grey_mean = _grey(images).mean(dim=(1, 2, 3), keepdim=True)
    images = (grey_mean + (images - grey_mean) * factor(colours.contrast)).clamp(0, 1)
    if images.shape[1] == 1:
        return images  # a grey image has no saturation and no hue
    grey = _grey(images)
    images = (grey + (images - grey) * factor(colours.saturation)).clamp(0, 1)
    return _turn_hue(images, factor(colours.hue)[:, 0]) if hue else images


def _grey(images: Tensor) -> Tensor:
    """Luma of ITU-R 601 [n, 1, H, W]; the image itself if it has one channel."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, dim=1)
    return 0.2989 * red + 0.587 * green + 0.114 * blue  # numbers, not a tensor: copying one makes a GPU's host wait


def _turn_hue(images: Tensor, turns: Tensor) -> Tensor:
    """RGB [n, 3, H, W] in 0..1 with the hue turned by `turns` [n, 1, 1] of the circle (through HSV)."""
    red, green, blue = images.unbind(1)
    value, low = images.amax(1), images.amin(1)
    chroma = value - low
    safe = torch.where(chroma > 0, chroma, 1.0)
    sector = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    hue = 6 * ((sector / 6 + turns) % 1.0)
    channels = []
    for offset in (5, 3, 1):  # f(n) = V - C * clamp(min(k, 4 - k), 0, 1), k = (n + h) mod 6
        k = (offset + hue) % 6
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, dim=1)


def rotate(images: Tensor, degrees: Drawn) -> Tensor:
    """Images float [n, C, H, W] (square) turned about their centres, bilinear, black outside."""
    angle = torch.as_tensor(degrees, device=images.device).deg2rad().to(images.dtype)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    theta = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def crop_and_resize(images: Tensor, boxes: Drawn, side: int) -> Tensor:
    """Each sample's box (top, left, height, width in pixels) of [n, C, H, W], bilinear to side x side."""
    size = images.shape[2]
    box = torch.as_tensor(boxes, device=images.device, dtype=images.dtype)
    scale_y, scale_x = box[:, 2] / size, box[:, 3] / size
    centre_y, centre_x = (2 * box[:, :2] + box[:, 2:]).unbind(1)
    zero = torch.zeros_like(scale_x)
    row_x = torch.stack([scale_x, zero, centre_x / size - 1], 1)
    row_y = torch.stack([zero, scale_y, centre_y / size - 1], 1)
    shape = [len(images), images.shape[1], side, side]
    grid = F.affine_grid(torch.stack([row_x, row_y], 1), shape, align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def resize(images: Tensor, side: int) -> Tensor:
    """[n, C, H, W] -> [n, C, side, side], bilinear, antialiased when it shrinks."""
    shrinks = side < images.shape[2]
    return F.interpolate(images, size=(side, side), mode="bilinear", antialias=shrinks, align_corners=False)


def center_crop(images: Tensor, side: int) -> Tensor:
    """The central side x side pixels of [n, C, H, W]."""
    top = (images.shape[2] - side) // 2
    left = (images.shape[3] - side) // 2
    return images[:, :, top : top + side, left : left + side]


def mixup(images: Tensor, partners: Tensor, own_share: Drawn) -> Tensor:
    """lambda x image + (1 - lambda) x partner (Zhang et al. 2018): float [n, C, H, W]."""
    weight = torch.as_tensor(own_share, device=images.device, dtype=images.dtype)[:, None, None, None]
    return images * weight + partners * (1 - weight)


def cutmix(images: Tensor, partners: Tensor, boxes: Drawn) -> Tensor:
    """The partner within each sample's box, the image around it: float [n, C, H, W].

    `boxes` is int64 [n, 4]: first row, last row + 1, first column, last column + 1.
    """
    top, bottom, left, right = torch.as_tensor(boxes, device=images.device)[:, :, None].unbind(1)
    place = torch.arange(images.shape[2], device=images.device)
    rows, columns = (place >= top) & (place < bottom), (place >= left) & (place < right)
    return torch.where(rows[:, None, :, None] & columns[:, None, None, :], partners, images)
