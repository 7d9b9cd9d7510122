"""Kernels for a CPU: the filters' part of Winograd's F(4x4, 3x3), G g G', and the same transposed for the gradient.

    G =  1     0     0
        -2/3 -2a/3 -1/3     a = sqrt(1/2)
        -2/3  2a/3 -1/3     b = sqrt(2)
         1/6   b/6  1/3
         1/6  -b/6  1/3
         0     0     1

The maps' part is in winograd_kernel.py. Filters are float32 [O, 9, I], their tiles [36, O, I]; a loop goes over the
inputs of one output, which is one thread's.
"""

import numpy as np
from numba import njit, prange, uintp
from numpy.typing import NDArray

from distcifar.models.bf16 import Bits
from distcifar.models.bf16_kernel import F, narrow_line, number
from distcifar.models.winograd_kernel import HIGH, LOW

Floats = NDArray[np.float32]
NEAR, FAR = -2 / 3, 1 / 6  # what the rows of a and of b are divided by


@njit(fastmath={"contract"}, error_model="numpy")
def _six_of_three(a: Floats, b: Floats, c: Floats, out: Floats, first: int, step: int) -> None:
    """G times a column of three lines, to every `step`-th line of `out`."""
    r0, r1, r2 = out[first], out[first + step], out[first + 2 * step]
    r3, r4, r5 = out[first + 3 * step], out[first + 4 * step], out[first + 5 * step]
    near, far, low, high = F(NEAR), F(FAR), F(NEAR * LOW), F(FAR * HIGH)
    for k in range(len(a)):
        i = uintp(k)
        even, odd = near * (a[i] + F(0.5) * c[i]), low * b[i]
        further, other = far * (a[i] + F(2) * c[i]), high * b[i]
        r0[i], r5[i] = a[i], c[i]
        r1[i], r2[i], r3[i], r4[i] = even + odd, even - odd, further + other, further - other


@njit(fastmath={"contract"}, error_model="numpy")
def _three_of_six(lines: Floats, first: int, step: int, a: Floats, b: Floats, c: Floats) -> None:
    """The transposed: G' times a column of six lines, every `step`-th of `lines`."""
    r0, r1, r2 = lines[first], lines[first + step], lines[first + 2 * step]
    r3, r4, r5 = lines[first + 3 * step], lines[first + 4 * step], lines[first + 5 * step]
    near, far, low, high = F(NEAR), F(FAR), F(NEAR * LOW), F(FAR * HIGH)
    for k in range(len(a)):
        i = uintp(k)
        even, further = near * (r1[i] + r2[i]), far * (r3[i] + r4[i])
        a[i], c[i] = r0[i] + (even + further), F(0.5) * even + F(2) * further + r5[i]
        b[i] = low * (r1[i] - r2[i]) + high * (r3[i] - r4[i])


@njit(fastmath={"contract"}, error_model="numpy")
def _added(line: Bits, out: Floats) -> None:
    for k in range(len(out)):
        i = uintp(k)
        out[i] += number(line[i])


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def tiles_of_filters(filters: Floats, out: Bits) -> None:
    """G g G' of every filter: [O, 9, I] to `out` [36, O, I]."""
    for o in prange(len(filters)):
        half, whole = np.empty((18, filters.shape[2]), np.float32), np.empty((36, filters.shape[2]), np.float32)
        for column in range(3):
            _six_of_three(filters[o, column], filters[o, 3 + column], filters[o, 6 + column], half, column, 3)
        for row in range(6):
            _six_of_three(half[3 * row], half[3 * row + 1], half[3 * row + 2], whole, 6 * row, 1)
        for place in range(36):
            narrow_line(whole[place], out[place, o])


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def filters_of_gradients(tiles: Bits, out: Floats) -> None:
    """The transposed of `tiles_of_filters`: the sum of `tiles` [parts, 36, O, I] to `out` [O, 9, I]."""
    for o in prange(len(out)):
        whole, half = np.zeros((36, out.shape[2]), np.float32), np.empty((18, out.shape[2]), np.float32)
        for part in range(len(tiles)):
            for place in range(36):
                _added(tiles[part, place, o], whole[place])
        for column in range(6):
            _three_of_six(whole, column, 6, half[column], half[6 + column], half[12 + column])
        for row in range(3):
            _three_of_six(half, 6 * row, 1, out[o, 3 * row], out[o, 3 * row + 1], out[o, 3 * row + 2])
