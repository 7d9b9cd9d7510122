"""Kernels for a CPU: the maps' part of a 3x3 convolution by Winograd's F(4x4, 3x3), and of its gradient, on bf16 maps.

Lavin, Gray 2016, "Fast Algorithms for Convolutional Neural Networks" (arXiv 1509.09308): a tile of 4x4 results comes
from 6x6 values d and the filter g as A'[(G g G') * (B' d B)]A. There *, over all inputs, is a matrix product for each
of 36 places: 36 products for what takes 144 otherwise. The matrices multiply polynomials by their values at six points.
Ours are 0, a, -a, b, -b and infinity with a = 1/b = sqrt(1/2): their roundings are half those of the paper's 1 and 2.

    B' = 1   0   -5/2   0     1   0      A' = 1   1     1     1    1    0
         0  -2a  -2     a     1   0           0   a    -a     b   -b    0
         0   2a  -2    -a     1   0           0   1/2   1/2   2    2    0
         0  -b/2 -1/2   b     1   0           0   a/2  -a/2   2b  -2b   1
         0   b/2 -1/2  -b     1   0
         0   1    0    -5/2   0   1

Here is B' d B, and the same transposed for the gradient; winograd_result_kernel.py has A, winograd_filter_kernel.py G.
Maps are bits [N, H, W * C], channels innermost; what belongs to tiles is [36, N * rows * columns * C], so a row of
tiles is one line. Loops go over one line, as in norm_kernel.py, and take their lines out of whole arrays themselves: of
a slice of two dimensions LLVM does not know that its lines are without gaps, and computes value by value. An image is
one thread's work.
"""

import numpy as np
from numba import njit, prange, uintp
from numpy.typing import NDArray

from distcifar.models.bf16 import Bits
from distcifar.models.bf16_kernel import F, narrow, narrow_line, number

Floats = NDArray[np.float32]
LOW, HIGH = 0.7071067811865476, 1.4142135623730951  # a and b


@njit(fastmath={"contract"}, error_model="numpy")
def _row(maps: Bits, y: int, nothing: Bits) -> Bits:
    return maps[y] if 0 <= y < len(maps) else nothing


@njit(fastmath={"contract"}, error_model="numpy")
def _rows_in(maps: Bits, nothing: Bits, y: int, x: int, c: int, out: Floats) -> None:
    """B' d for column x of `maps` [H, W * C], d the six rows from y on, to `out` [6, 4, line + c].

    Columns of the padded map are apart by their number modulo 4: so tiles beside each other are one line.
    """
    first, column, at = x * c, (x + 1) % 4, (x + 1) // 4 * c
    z = first + c
    d0, d1 = _row(maps, y, nothing)[first:z], _row(maps, y + 1, nothing)[first:z]
    d2, d3 = _row(maps, y + 2, nothing)[first:z], _row(maps, y + 3, nothing)[first:z]
    d4, d5 = _row(maps, y + 4, nothing)[first:z], _row(maps, y + 5, nothing)[first:z]
    r0, r1, r2 = out[0, column, at:], out[1, column, at:], out[2, column, at:]
    r3, r4, r5 = out[3, column, at:], out[4, column, at:], out[5, column, at:]
    a, b = F(LOW), F(HIGH)
    for k in range(len(d0)):
        i = uintp(k)
        v1, v2, v3, v4 = number(d1[i]), number(d2[i]), number(d3[i]), number(d4[i])
        even, odd = v4 - F(2) * v2, a * (v3 - F(2) * v1)
        further, other = v4 - F(0.5) * v2, b * (v3 - F(0.5) * v1)
        r0[i], r5[i] = number(d0[i]) - F(2.5) * v2 + v4, v1 - F(2.5) * v3 + number(d5[i])
        r1[i], r2[i], r3[i], r4[i] = even + odd, even - odd, further + other, further - other


@njit(fastmath={"contract"}, error_model="numpy")
def _columns_in(columns: Floats, c: int, row: int, first: int, out: Bits) -> None:
    """d B of a row of tiles, given as `_rows_in` has it, [4, line + c], to that row of its 6x6 in `out` [36, lines]."""
    s0, s1, s2, s3 = columns[0, :-c], columns[1, :-c], columns[2, :-c], columns[3, :-c]
    s4, s5 = columns[0, c:], columns[1, c:]
    z, j = first + len(s0), 6 * row
    r0, r1, r2 = out[j, first:z], out[j + 1, first:z], out[j + 2, first:z]
    r3, r4, r5 = out[j + 3, first:z], out[j + 4, first:z], out[j + 5, first:z]
    a, b = F(LOW), F(HIGH)
    for k in range(len(s0)):
        i = uintp(k)
        v1, v2, v3, v4 = s1[i], s2[i], s3[i], s4[i]
        even, odd = v4 - F(2) * v2, a * (v3 - F(2) * v1)
        further, other = v4 - F(0.5) * v2, b * (v3 - F(0.5) * v1)
        r0[i], r5[i] = narrow(s0[i] - F(2.5) * v2 + v4), narrow(v1 - F(2.5) * v3 + s5[i])
        r1[i], r2[i] = narrow(even + odd), narrow(even - odd)
        r3[i], r4[i] = narrow(further + other), narrow(further - other)


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def tiles_of_maps(maps: Bits, channels: int, rows: int, columns: int, out: Bits) -> None:
    """B' d B of every tile: `maps` [N, H, W * C] to `out` [36, N * rows * columns * C]. Beyond a map all is 0."""
    c, line = channels, columns * channels
    for n in prange(len(maps)):
        nothing = np.zeros(maps.shape[2], np.uint16)
        between = np.zeros((6, 4, line + c), np.float32)
        for ty in range(rows):
            for x in range(len(nothing) // c):
                _rows_in(maps[n], nothing, 4 * ty - 1, x, c, between)
            for row in range(6):
                _columns_in(between[row], c, row, (n * rows + ty) * line, out)


@njit(fastmath={"contract"}, error_model="numpy")
def _rows_back(tiles: Bits, column: int, first: int, out: Floats) -> None:
    """B v of a row of tiles, for one of its six columns: `tiles` [36, lines] to `out` [row, column, line]."""
    r0, r1, r2 = out[0, column], out[1, column], out[2, column]
    r3, r4, r5 = out[3, column], out[4, column], out[5, column]
    z, j = first + len(r0), column
    v0, v1, v2 = tiles[j, first:z], tiles[j + 6, first:z], tiles[j + 12, first:z]
    v3, v4, v5 = tiles[j + 18, first:z], tiles[j + 24, first:z], tiles[j + 30, first:z]
    a, b = F(LOW), F(HIGH)
    for k in range(len(r0)):
        i = uintp(k)
        p, q, r, s = number(v1[i]), number(v2[i]), number(v3[i]), number(v4[i])
        even, odd, further, other = p + q, a * (p - q), r + s, b * (r - s)
        start, end = number(v0[i]), number(v5[i])
        r0[i], r5[i] = start, end
        r1[i], r3[i] = end - (F(2) * odd + F(0.5) * other), odd + other - F(2.5) * end
        r2[i], r4[i] = -(F(2.5) * start + F(2) * even + F(0.5) * further), start + even + further


@njit(fastmath={"contract"}, error_model="numpy")
def _columns_back(v: Floats, sums: Floats) -> None:
    """Adds the first four columns of v B', [6, line], to those of a row of tiles, [4, line + c]."""
    v0, v1, v2, v3, v4, v5 = v[0], v[1], v[2], v[3], v[4], v[5]
    s0, s1, s2, s3 = sums[0], sums[1], sums[2], sums[3]
    a, b = F(LOW), F(HIGH)
    for k in range(len(v0)):
        i = uintp(k)
        even, odd, further, other = v1[i] + v2[i], a * (v1[i] - v2[i]), v3[i] + v4[i], b * (v3[i] - v4[i])
        s0[i] += v0[i]
        s1[i] += v5[i] - (F(2) * odd + F(0.5) * other)
        s2[i] -= F(2.5) * v0[i] + F(2) * even + F(0.5) * further
        s3[i] += odd + other - F(2.5) * v5[i]


@njit(fastmath={"contract"}, error_model="numpy")
def _columns_back_next(v: Floats, c: int, sums: Floats) -> None:
    """The other two, which are the next tile's first."""
    v0, v1, v2, v3, v4, v5 = v[0], v[1], v[2], v[3], v[4], v[5]
    s0, s1 = sums[0, c:], sums[1, c:]
    for k in range(len(v0)):
        i = uintp(k)
        s0[i] += v0[i] + (v1[i] + v2[i]) + (v3[i] + v4[i])
        s1[i] += v5[i]


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def maps_of_gradients(tiles: Bits, channels: int, rows: int, columns: int, out: Bits) -> None:
    """The transposed of `tiles_of_maps`: B v B' of every tile, summed where tiles overlap; `out` [N, H, W * C]."""
    c, line = channels, columns * channels
    for n in prange(len(out)):
        between = np.empty((6, 6, line), np.float32)  # row and column of the tile
        sums = np.zeros((6, 4, line + c), np.float32)  # rows 4 ty to 4 ty + 5 of the padded map
        for ty in range(rows + 1):
            sums[0], sums[1] = sums[4], sums[5]
            sums[2:] = F(0)
            if ty < rows:
                for column in range(6):
                    _rows_back(tiles, column, (n * rows + ty) * line, between)
                for row in range(6):
                    _columns_back(between[row], sums[row])
                    _columns_back_next(between[row], c, sums[row])
            for y in range(max(4 * ty - 1, 0), min(4 * ty + 3, out.shape[1])):
                for x in range(out.shape[2] // c):
                    at = (x + 1) // 4 * c
                    narrow_line(sums[(y + 1) % 4, (x + 1) % 4, at : at + c], out[n, y, x * c : x * c + c])
