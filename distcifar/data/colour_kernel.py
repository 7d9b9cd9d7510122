"""The CPU kernel of recipes that compute with pixel values: gather, crop, flip, colours, rotation, normalise, cut out.

What data/augment.py says operation by operation, and within 1e-5 of it: one image at a time, in a buffer that stays in
the cache (figures: docs/performance.md). Compiled by numba on first use and cached on disk.
"""

import math

import numpy as np
from numba import njit, prange
from numpy import float32
from numpy.typing import NDArray

# After a change in kernel.py remove __pycache__: numba's cache of this file does not notice.
from distcifar.data.kernel import cut_square, source_place

# [C, H+3, W+3]: an image in 0..1 from (1, 1) on, black around it; of four neighbours in a rotation two may lie beyond.
Planes = NDArray[float32]

# Every number is made a float32: one of Python's would make all that it touches float64, at half the speed.
RED, GREEN, BLUE = 0.2989, 0.587, 0.114  # luma, as augment.jitter

FAST = {"nnan", "ninf", "nsz", "contract", "reassoc"}  # sums in any order: vectors instead of single numbers


@njit(fastmath=FAST, nogil=True)
def _clamped(value: float32) -> float32:
    return min(max(value, float32(0)), float32(1))


@njit(fastmath=FAST, nogil=True)
def _read(
    planes: Planes,  # zeros, written
    image: NDArray[np.uint8],  # [H, W, C]
    shift_y: int,
    shift_x: int,
    flip: bool,  # noqa: FBT001 (numba has no keyword-only)
    reflect: bool,  # noqa: FBT001
) -> None:
    """The cropped and flipped image in 0..1."""
    height, width, channels = image.shape
    for y in range(height):
        row = source_place(y + shift_y, height, reflect)
        if row < 0:
            continue
        for x in range(width):
            column = source_place((width - 1 - x if flip else x) + shift_x, width, reflect)
            if column >= 0:
                for c in range(channels):
                    planes[c, y + 1, x + 1] = float32(image[row, column, c]) / float32(255)


@njit(fastmath=FAST, nogil=True)
def _turned(value: float32, low: float32, hue: float32, offset: float32) -> float32:
    """A channel of the colour with this value, lowest channel and hue (0-6); offset 5 is red, 3 green, 1 blue."""
    k = offset + hue
    k = k - float32(6) if k >= float32(6) else k
    return value - (value - low) * _clamped(min(k, float32(4) - k))


@njit(fastmath=FAST, nogil=True)
def _colour_line(
    red: NDArray[float32],  # [W], written, as the others
    green: NDArray[float32],
    blue: NDArray[float32],
    grey_mean: float32,
    contrast: float32,
    saturation: float32,
    turn: float32,
    hue: bool,  # noqa: FBT001
) -> None:
    """Contrast, saturation and hue of one line."""
    for x in range(len(red)):
        r = _clamped(grey_mean + (red[x] - grey_mean) * contrast)
        g = _clamped(grey_mean + (green[x] - grey_mean) * contrast)
        b = _clamped(grey_mean + (blue[x] - grey_mean) * contrast)
        grey = float32(RED) * r + float32(GREEN) * g + float32(BLUE) * b
        red[x] = _clamped(grey + (r - grey) * saturation)
        green[x] = _clamped(grey + (g - grey) * saturation)
        blue[x] = _clamped(grey + (b - grey) * saturation)
    if not hue:
        return
    for x in range(len(red)):
        r, g, b = red[x], green[x], blue[x]
        value, low = max(r, g, b), min(r, g, b)
        chroma = value - low
        safe = chroma if chroma > float32(0) else float32(1)
        of_red, of_green, of_blue = (g - b) / safe, float32(2) + (b - r) / safe, float32(4) + (r - g) / safe
        circle = (of_red if value == r else of_green if value == g else of_blue) / float32(6) + turn
        angle = float32(6) * (circle - np.floor(circle))
        red[x] = _turned(value, low, angle, float32(5))
        green[x] = _turned(value, low, angle, float32(3))
        blue[x] = _turned(value, low, angle, float32(1))


@njit(fastmath=FAST, nogil=True)
def _line(planes: Planes, channel: int, y: int) -> NDArray[float32]:
    """One line of the image, contiguous: numba makes vectors of nothing else."""
    return planes[channel, y + 1, 1 : planes.shape[2] - 2]


@njit(fastmath=FAST, nogil=True)
def _jitter(planes: Planes, factors: NDArray[float32], hue: bool) -> None:  # noqa: FBT001
    """augment.jitter of one image in place; `factors` is brightness, contrast, saturation, turn of the hue."""
    channels, height, width = planes.shape[0], planes.shape[1] - 3, planes.shape[2] - 3
    brightness, contrast, saturation, turn = factors
    grey = float32(0)
    for y in range(height):
        for c in range(channels):
            line = _line(planes, c, y)
            share = float32(1 if channels == 1 else RED if c == 0 else GREEN if c == 1 else BLUE)
            for x in range(width):
                line[x] = _clamped(line[x] * brightness)
                grey += line[x] * share
    grey /= float32(height * width)
    for y in range(height):
        if channels == 3:
            red, green, blue = _line(planes, 0, y), _line(planes, 1, y), _line(planes, 2, y)
            _colour_line(red, green, blue, grey, contrast, saturation, turn, hue)
        else:
            line = _line(planes, 0, y)
            for x in range(width):
                line[x] = _clamped(grey + (line[x] - grey) * contrast)


@njit(fastmath=FAST, nogil=True)
def _write_rotated(
    out: NDArray[float32],  # [H, W, C], written
    planes: Planes,
    degrees: float32,
    mean: NDArray[float32],  # [C]
    std: NDArray[float32],
) -> None:
    """augment.rotate of one image, normalised: the place that a pixel comes from, between its four neighbours."""
    height, width, channels = out.shape
    angle = degrees * float32(math.pi / 180)
    cos, sin = np.cos(angle), np.sin(angle)
    middle = float32(height - 1) * float32(0.5)
    last = float32(height)
    for y in range(height):
        for x in range(width):
            dy, dx = float32(y) - middle, float32(x) - middle
            source_y = min(max(sin * dx + cos * dy + middle, float32(-1)), last)  # beyond is as black as the border
            source_x = min(max(cos * dx - sin * dy + middle, float32(-1)), last)
            floor_y, floor_x = np.floor(source_y), np.floor(source_x)
            below, right = source_y - floor_y, source_x - floor_x
            top, left = int(floor_y) + 1, int(floor_x) + 1
            for c in range(channels):
                upper = planes[c, top, left] * (float32(1) - right) + planes[c, top, left + 1] * right
                lower = planes[c, top + 1, left] * (float32(1) - right) + planes[c, top + 1, left + 1] * right
                out[y, x, c] = (upper * (float32(1) - below) + lower * below - mean[c]) / std[c]


@njit(parallel=True, nogil=True, cache=True, fastmath=FAST)
def colour_batch(
    out: NDArray[float32],  # [n, H, W, C], written; H = W
    images: NDArray[np.uint8],  # [N, H, W, C]
    rows: NDArray[np.int64],  # [n], which images
    mean: NDArray[float32],  # [C], of pixels in 0..1
    std: NDArray[float32],  # [C]
    shift_y: NDArray[np.int64],
    shift_x: NDArray[np.int64],
    flip: NDArray[np.bool_],
    cut_y: NDArray[np.int64],
    cut_x: NDArray[np.int64],
    cut_side: int,
    reflect: bool,  # noqa: FBT001
    factors: NDArray[float32],  # [n, 4]: brightness, contrast, saturation, turn of the hue
    hue: bool,  # noqa: FBT001
    degrees: NDArray[float32],  # [n]
) -> None:
    """`out[i]` = image `rows[i]`: moved, coloured, turned, normalised, cut; within 1e-5 of augment's operations."""
    n, height, width, channels = out.shape
    for i in prange(n):
        planes = np.zeros((channels, height + 3, width + 3), float32)
        _read(planes, images[rows[i]], shift_y[i], shift_x[i], flip[i], reflect)
        _jitter(planes, factors[i], hue)
        _write_rotated(out[i], planes, degrees[i], mean, std)
        cut_square(out[i], cut_y[i], cut_x[i], cut_side)
