"""The fused CPU kernel: gather, crop, flip, normalise and cut out in one pass over the pixels.

One read of uint8 and one write of float32 per pixel, where a chain of torch operations makes a pass for each
step (figures: docs/performance.md). Compiled by numba on first use and cached on disk.
"""

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray


@njit(inline="always")
def _source(place: int, length: int, reflect: bool) -> int:  # noqa: FBT001 (numba has no keyword-only)
    """Where pixel `place` is read: itself, mirrored at the border, or -1 for the black outside."""
    if 0 <= place < length:
        return place
    if not reflect:
        return -1
    return -place if place < 0 else 2 * length - 2 - place


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
    for i in prange(n):
        image = images[rows[i]]
        columns = np.empty(width, np.int64)  # once an image: the inner loop is bound by its index arithmetic
        for x in range(width):
            columns[x] = _source((width - 1 - x if flip[i] else x) + shift_x[i], width, reflect)
        for y in range(height):
            row = _source(y + shift_y[i], height, reflect)
            for x in range(width):
                if row < 0 or columns[x] < 0:
                    for c in range(channels):
                        out[i, y, x, c] = table[c, 0]
                else:
                    for c in range(channels):
                        out[i, y, x, c] = table[c, image[row, columns[x], c]]
        if cut_side > 0:
            top, left = cut_y[i] - cut_side // 2, cut_x[i] - cut_side // 2
            out[i, max(top, 0) : max(top + cut_side, 0), max(left, 0) : max(left + cut_side, 0)] = 0
