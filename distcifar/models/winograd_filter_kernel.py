"""Kernels for a CPU: the filters' part of Winograd's F(2x2, 3x3), G g G', and the same transposed for the gradient.

    G = 1    0    0
        1/2  1/2  1/2
        1/2 -1/2  1/2
        0    0    1

The maps' part is in winograd_kernel.py. Filters are float32 [O, 9, I], their tiles [16, O, I]; a loop goes over the
inputs of one output, which is one thread's.
"""

import numpy as np
from numba import njit, prange, uintp
from numpy.typing import NDArray

from distcifar.models.bf16 import Bits
from distcifar.models.bf16_kernel import F, narrow, number

Floats = NDArray[np.float32]


@njit(fastmath={"contract"}, error_model="numpy")
def _four_of_three(a: Floats, b: Floats, c: Floats, out: Floats, first: int, step: int) -> None:
    """G times a column of three lines, to every `step`-th line of `out`."""
    r0, r1, r2, r3 = out[first], out[first + step], out[first + 2 * step], out[first + 3 * step]
    for k in range(len(a)):
        i = uintp(k)
        half, middle = F(0.5) * (a[i] + c[i]), F(0.5) * b[i]
        r0[i], r1[i], r2[i], r3[i] = a[i], half + middle, half - middle, c[i]


@njit(fastmath={"contract"}, error_model="numpy")
def _three_of_four(lines: Floats, first: int, step: int, a: Floats, b: Floats, c: Floats) -> None:
    """The transposed: G' times a column of four lines, every `step`-th of `lines`."""
    r0, r1, r2, r3 = lines[first], lines[first + step], lines[first + 2 * step], lines[first + 3 * step]
    for k in range(len(a)):
        i = uintp(k)
        half = F(0.5) * (r1[i] + r2[i])
        a[i], b[i], c[i] = r0[i] + half, F(0.5) * (r1[i] - r2[i]), half + r3[i]


@njit(fastmath={"contract"}, error_model="numpy")
def _narrowed(line: Floats, out: Bits) -> None:
    for k in range(len(out)):
        i = uintp(k)
        out[i] = narrow(line[i])


@njit(fastmath={"contract"}, error_model="numpy")
def _added(line: Bits, out: Floats) -> None:
    for k in range(len(out)):
        i = uintp(k)
        out[i] += number(line[i])


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def tiles_of_filters(filters: Floats, out: Bits) -> None:
    """G g G' of every filter: [O, 9, I] to `out` [16, O, I]."""
    for o in prange(len(filters)):
        half, whole = np.empty((12, filters.shape[2]), np.float32), np.empty((16, filters.shape[2]), np.float32)
        for column in range(3):
            _four_of_three(filters[o, column], filters[o, 3 + column], filters[o, 6 + column], half, column, 3)
        for row in range(4):
            _four_of_three(half[3 * row], half[3 * row + 1], half[3 * row + 2], whole, 4 * row, 1)
        for place in range(16):
            _narrowed(whole[place], out[place, o])


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def filters_of_gradients(tiles: Bits, out: Floats) -> None:
    """The transposed of `tiles_of_filters`: the sum of `tiles` [parts, 16, O, I] to `out` [O, 9, I]."""
    for o in prange(len(out)):
        whole, half = np.zeros((16, out.shape[2]), np.float32), np.empty((12, out.shape[2]), np.float32)
        for part in range(len(tiles)):
            for place in range(16):
                _added(tiles[part, place, o], whole[place])
        for column in range(4):
            _three_of_four(whole, column, 4, half[column], half[4 + column], half[8 + column])
        for row in range(3):
            _three_of_four(half, 4 * row, 1, out[o, 3 * row], out[o, 3 * row + 1], out[o, 3 * row + 2])
