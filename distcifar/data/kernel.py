"""The fused CPU kernel: gather, crop, flip, normalise and cut out in one pass over the pixels.

One read of uint8 and one write of float32 per pixel, where a chain of torch operations makes a pass for each
step (figures: docs/performance.md). Compiled by numba on first use and cached on disk.
"""

import numpy as np
from numba import njit, prange, uintp
from numpy.typing import NDArray


@njit(inline="always")
def source_place(place: int, length: int, reflect: bool) -> int:  # noqa: FBT001 (numba has no keyword-only)
    """Where pixel `place` is read: itself, mirrored at the border, or -1 for the black outside."""
    if 0 <= place < length:
        return place
    if not reflect:
        return -1
    return -place if place < 0 else 2 * length - 2 - place


@njit(inline="always")
def _fill_line(
    line: NDArray[np.float32],  # [W*C], written
    source: NDArray[np.uint8],  # [W*C]
    columns: NDArray[np.int64],  # [W], where each pixel is read
    inside: NDArray[np.bool_],  # [W], false: black
    values: NDArray[np.float32],  # [C*256]
    channels: int,
) -> None:
    """One row of one image. Unsigned indices spare numba's test for negative ones; with the three channels of
    colour written out it is twice as fast as the general loop."""
    if channels == 3:
        for x in range(len(columns)):
            if inside[uintp(x)]:
                k = columns[uintp(x)]
                line[uintp(3 * x)] = values[uintp(source[uintp(k)])]
                line[uintp(3 * x + 1)] = values[uintp(256) + uintp(source[uintp(k + 1)])]
                line[uintp(3 * x + 2)] = values[uintp(512) + uintp(source[uintp(k + 2)])]
            else:
                line[uintp(3 * x)], line[uintp(3 * x + 1)], line[uintp(3 * x + 2)] = values[0], values[256], values[512]
        return
    for x in range(len(columns)):
        for c in range(channels):
            pixel = uintp(source[uintp(columns[uintp(x)] + c)]) if inside[uintp(x)] else uintp(0)
            line[uintp(x * channels + c)] = values[uintp(256 * c) + pixel]


@njit
def cut_square(picture: NDArray[np.float32], centre_y: int, centre_x: int, side: int) -> None:
    """Sets the square of `side` pixels around a centre of `picture` [H, W, C] to 0; none where `side` is 0."""
    if side > 0:
        top, left = centre_y - side // 2, centre_x - side // 2
        picture[max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = 0


@njit(parallel=True, nogil=True, cache=True)
def fill_batch(
    out: NDArray[np.float32],  # [n, H, W, C], written
    images: NDArray[np.uint8],  # [N, H, W, C]
    rows: NDArray[np.int64],  # [n], which images
    table: NDArray[np.float32],  # [C, 256], normalised pixel values
    shift_y: NDArray[np.int64],
    shift_x: NDArray[np.int64],
    flip: NDArray[np.bool_],
    cut_y: NDArray[np.int64],
    cut_x: NDArray[np.int64],
    cut_side: int,
    reflect: bool,  # noqa: FBT001
) -> None:
    """`out[i]` = image `rows[i]`, moved and normalised; the bits of augment.move, normalise and cut_out."""
    n, height, width, channels = out.shape
    values = table.reshape(-1)
    for i in prange(n):
        image = images[rows[i]].reshape(height, width * channels)
        lines = out[i].reshape(height, width * channels)
        columns, inside = np.empty(width, np.int64), np.empty(width, np.bool_)
        for x in range(width):
            place = source_place((width - 1 - x if flip[i] else x) + shift_x[i], width, reflect)
            columns[x], inside[x] = max(place, 0) * channels, place >= 0
        for y in range(height):
            row = source_place(y + shift_y[i], height, reflect)
            if row < 0:
                for k in range(width * channels):
                    lines[y, k] = values[256 * (k % channels)]
            else:
                _fill_line(lines[y], image[row], columns, inside, values, channels)
        cut_square(out[i], cut_y[i], cut_x[i], cut_side)
