"""Kernels for a CPU: the small transforms of a 3x3 convolution by Winograd's F(2x2, 3x3), on bf16 maps.

Lavin, Gray 2016, "Fast Algorithms for Convolutional Neural Networks" (arXiv 1509.09308): a tile of 2x2 results comes
from 4x4 values d and the filter g as A'[(G g G') * (B' d B)]A, with

    B' = 1  0 -1  0    A' = 1  1  1  0
         0  1  1  0         0  1 -1 -1
         0 -1  1  0
         0  1  0 -1

where *, over all inputs, is a matrix product for each of the 16 places: 16 products for what takes 36 otherwise. Here
is what stands around those products, and the same transposed for the gradients; the filters' part is in
winograd_filter_kernel.py. Maps are bits [N, H, W * C], channels innermost; what belongs to tiles is
[16, N * rows * columns * C], so a row of tiles is one line. Loops go over one line, as in norm_kernel.py, and take
their lines out of whole arrays themselves: of a slice of two dimensions LLVM does not know that its lines are without
gaps, and computes value by value. An image is one thread's work.
"""

import numpy as np
from numba import njit, prange, uintp
from numpy.typing import NDArray

from distcifar.models.bf16 import Bits
from distcifar.models.bf16_kernel import F, narrow, number

Floats = NDArray[np.float32]
Places = NDArray[np.uint8]


@njit(fastmath={"contract"}, error_model="numpy")
def _row(maps: Bits, y: int, nothing: Bits) -> Bits:
    return maps[y] if 0 <= y < len(maps) else nothing


@njit(fastmath={"contract"}, error_model="numpy")
def _rows_in(d0: Bits, d1: Bits, d2: Bits, d3: Bits, first: int, out: Floats) -> None:
    """B' d for a piece of four rows, to `out` [4, line] from `first` on."""
    r0, r1, r2, r3 = out[0, first:], out[1, first:], out[2, first:], out[3, first:]
    for k in range(len(d0)):
        i = uintp(k)
        a, b, c, d = number(d0[i]), number(d1[i]), number(d2[i]), number(d3[i])
        r0[i], r1[i], r2[i], r3[i] = a - c, b + c, c - b, b - d


@njit(fastmath={"contract"}, error_model="numpy")
def _columns_in(even: Floats, odd: Floats, c: int, row: int, first: int, out: Bits) -> None:
    """d B of a row of tiles, given its even and odd columns, to that row of its 4 in `out` [16, lines]."""
    e0, e1, o0, o1 = even[:-c], even[c:], odd[:-c], odd[c:]
    last, k = first + len(e0), 4 * row
    v0, v1, v2, v3 = out[k, first:last], out[k + 1, first:last], out[k + 2, first:last], out[k + 3, first:last]
    for k in range(len(v0)):
        i = uintp(k)
        v0[i], v1[i] = narrow(e0[i] - e1[i]), narrow(o0[i] + e1[i])
        v2[i], v3[i] = narrow(e1[i] - o0[i]), narrow(o0[i] - o1[i])


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def tiles_of_maps(maps: Bits, channels: int, rows: int, columns: int, out: Bits) -> None:
    """B' d B of every tile: `maps` [N, H, W * C] to `out` [16, N * rows * columns * C]. Beyond a map all is 0."""
    c, line = channels, columns * channels
    for n in prange(len(maps)):
        nothing = np.zeros(maps.shape[2], np.uint16)
        # Even and odd columns of the padded map apart, so that tiles beside each other are one line.
        sides = np.zeros((2, 4, line + c), np.float32)
        for ty in range(rows):
            d0, d1 = _row(maps[n], 2 * ty - 1, nothing), _row(maps[n], 2 * ty, nothing)
            d2, d3 = _row(maps[n], 2 * ty + 1, nothing), _row(maps[n], 2 * ty + 2, nothing)
            for x in range(len(nothing) // c):
                a, b = x * c, (x + 1) // 2 * c
                _rows_in(d0[a : a + c], d1[a : a + c], d2[a : a + c], d3[a : a + c], b, sides[(x + 1) % 2])
            first = (n * rows + ty) * line
            for i in range(4):
                _columns_in(sides[0, i], sides[1, i], c, i, first, out)


@njit(fastmath={"contract"}, error_model="numpy")
def _rows_back(tiles: Bits, first: int, column: int, out: Floats) -> None:
    """B v of a row of tiles, for one of its four columns: `tiles` [16, lines] to `out` [row, column, line]."""
    r0, r1, r2, r3 = out[0, column], out[1, column], out[2, column], out[3, column]
    last, j = first + len(r0), column
    v0, v1, v2, v3 = tiles[j, first:last], tiles[j + 4, first:last], tiles[j + 8, first:last], tiles[j + 12, first:last]
    for k in range(len(v0)):
        i = uintp(k)
        a, b, c, d = number(v0[i]), number(v1[i]), number(v2[i]), number(v3[i])
        r0[i], r1[i], r2[i], r3[i] = a, b - c + d, b + c - a, -d


@njit(fastmath={"contract"}, error_model="numpy")
def _columns_back(v: Floats, even: Floats, odd: Floats) -> None:
    """Adds v B' for a row of tiles: what belongs to the tiles' own first columns."""
    v0, v1, v2, v3 = v[0], v[1], v[2], v[3]
    for k in range(len(v0)):
        i = uintp(k)
        even[i] += v0[i]
        odd[i] += v1[i] - v2[i] + v3[i]


@njit(fastmath={"contract"}, error_model="numpy")
def _columns_back_next(v: Floats, even: Floats, odd: Floats) -> None:
    v0, v1, v2, v3 = v[0], v[1], v[2], v[3]
    for k in range(len(v0)):
        i = uintp(k)
        even[i] += v1[i] + v2[i] - v0[i]
        odd[i] -= v3[i]


@njit(fastmath={"contract"}, error_model="numpy")
def _narrowed(line: Floats, out: Bits) -> None:
    for k in range(len(out)):
        i = uintp(k)
        out[i] = narrow(line[i])


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def maps_of_gradients(tiles: Bits, channels: int, rows: int, columns: int, out: Bits) -> None:
    """The transposed of `tiles_of_maps`: B v B' of every tile, summed where tiles overlap; `out` [N, H, W * C]."""
    c, line = channels, columns * channels
    for n in prange(len(out)):
        between = np.empty((4, 4, line), np.float32)  # row and column of the tile
        sums = np.zeros((4, 2, line + c), np.float32)  # rows 2 ty to 2 ty + 3 of the padded map
        for ty in range(rows + 1):
            sums[0], sums[1] = sums[2], sums[3]
            sums[2:] = F(0)
            if ty < rows:
                first = (n * rows + ty) * line
                for j in range(4):
                    _rows_back(tiles, first, j, between)
                for row in range(4):
                    even, odd = sums[row, 0], sums[row, 1]
                    _columns_back(between[row], even[:line], odd[:line])
                    _columns_back_next(between[row], even[c:], odd[c:])
            for y in range(max(2 * ty - 1, 0), min(2 * ty + 1, out.shape[1])):
                for x in range(out.shape[2] // c):
                    b = (x + 1) // 2 * c
                    _narrowed(sums[(y + 1) % 2, (x + 1) % 2, b : b + c], out[n, y, x * c : x * c + c])


@njit(fastmath={"contract"}, error_model="numpy")
def _pair(a: np.uint16, b: np.uint16, c: np.uint16, d: np.uint16) -> tuple[np.float32, np.float32]:
    """A' of a column of four."""
    p, q = number(b), number(c)
    return number(a) + (p + q), p - (q + number(d))


@njit(fastmath={"contract"}, error_model="numpy")
def _results(tiles: Bits, first: int, out: Floats) -> None:
    """A' m A of a row of tiles: `tiles` [16, lines] to the four places [4, line]."""
    r0, r1, r2, r3 = out[0], out[1], out[2], out[3]
    z = first + len(r0)
    m0, m1, m2, m3 = tiles[0, first:z], tiles[1, first:z], tiles[2, first:z], tiles[3, first:z]
    m4, m5, m6, m7 = tiles[4, first:z], tiles[5, first:z], tiles[6, first:z], tiles[7, first:z]
    m8, m9, m10, m11 = tiles[8, first:z], tiles[9, first:z], tiles[10, first:z], tiles[11, first:z]
    m12, m13, m14, m15 = tiles[12, first:z], tiles[13, first:z], tiles[14, first:z], tiles[15, first:z]
    for k in range(len(r0)):
        i = uintp(k)
        a0, b0 = _pair(m0[i], m1[i], m2[i], m3[i])
        a1, b1 = _pair(m4[i], m5[i], m6[i], m7[i])
        a2, b2 = _pair(m8[i], m9[i], m10[i], m11[i])
        a3, b3 = _pair(m12[i], m13[i], m14[i], m15[i])
        r0[i], r1[i], r2[i], r3[i] = a0 + (a1 + a2), b0 + (b1 + b2), a1 - (a2 + a3), b1 - (b2 + b3)


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def maps_of_tiles(tiles: Bits, channels: int, rows: int, columns: int, out: Bits) -> None:
    """A' m A of every tile: [16, N * rows * columns * C] to `out` [N, H, W * C], as far as that reaches."""
    c, line = channels, columns * channels
    for n in prange(len(out)):
        four = np.empty((4, line), np.float32)
        for ty in range(rows):
            _results(tiles, (n * rows + ty) * line, four)
            for y in range(2 * ty, min(2 * ty + 2, out.shape[1])):
                for x in range(out.shape[2] // c):
                    _narrowed(four[y % 2 * 2 + x % 2, x // 2 * c : x // 2 * c + c], out[n, y, x * c : x * c + c])


@njit(fastmath={"contract"}, error_model="numpy")
def _maxima(four: Floats, out: Bits, places: Places) -> None:
    """The largest or NaN of four lines, and which: of equal ones the first."""
    r0, r1, r2, r3 = four[0], four[1], four[2], four[3]
    for k in range(len(out)):
        i = uintp(k)
        best, place = r0[i], np.uint8(0)
        later = r1[i] > best or r1[i] != r1[i]
        best, place = (r1[i], np.uint8(1)) if later else (best, place)
        later = r2[i] > best or r2[i] != r2[i]
        best, place = (r2[i], np.uint8(2)) if later else (best, place)
        later = r3[i] > best or r3[i] != r3[i]
        best, place = (r3[i], np.uint8(3)) if later else (best, place)
        out[i], places[i] = narrow(best), place


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def maxima_of_tiles(tiles: Bits, channels: int, rows: int, columns: int, out: Bits, places: Places) -> None:
    """The largest of each tile's 2x2 results: `out` [N, rows, columns * C], and its place, 0 to 3."""
    line = columns * channels
    for n in prange(len(out)):
        four = np.empty((4, line), np.float32)
        for ty in range(rows):
            _results(tiles, (n * rows + ty) * line, four)
            _maxima(four, out[n, ty], places[n, ty])


@njit(fastmath={"contract"}, error_model="numpy")
def _spread(four: Floats, first: int, out: Bits) -> None:
    """The transposed of `_results`: A y A' of a row of tiles, y in four lines, to `out` [16, lines]."""
    y0, y1, y2, y3 = four[0], four[1], four[2], four[3]
    for row in range(4):
        p, q = F(1) if row < 3 else F(0), F((0, 1, -1, -1)[row])
        z, j = first + len(y0), 4 * row
        o0, o1, o2, o3 = out[j, first:z], out[j + 1, first:z], out[j + 2, first:z], out[j + 3, first:z]
        for k in range(len(o0)):
            i = uintp(k)
            a, b = p * y0[i] + q * y2[i], p * y1[i] + q * y3[i]
            o0[i], o1[i], o2[i], o3[i] = narrow(a), narrow(a + b), narrow(a - b), narrow(-b)


@njit(fastmath={"contract"}, error_model="numpy")
def _widened(line: Bits, out: Floats) -> None:
    for k in range(len(out)):
        i = uintp(k)
        out[i] = number(line[i])


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def tiles_of_gradients(maps: Bits, channels: int, rows: int, columns: int, out: Bits) -> None:
    """The transposed of `maps_of_tiles`: `maps` [N, H, W * C] to `out` [16, N * rows * columns * C]."""
    c, line = channels, columns * channels
    for n in prange(len(maps)):
        four = np.empty((4, line), np.float32)
        for ty in range(rows):
            four[:] = F(0)
            for y in range(2 * ty, min(2 * ty + 2, maps.shape[1])):
                for x in range(maps.shape[2] // c):
                    _widened(maps[n, y, x * c : x * c + c], four[y % 2 * 2 + x % 2, x // 2 * c : x // 2 * c + c])
            _spread(four, (n * rows + ty) * line, out)


@njit(fastmath={"contract"}, error_model="numpy")
def _placed(line: Bits, places: Places, place: np.uint8, out: Floats) -> None:
    """Of the values of a line those at `place`, 0 for the others."""
    for k in range(len(out)):
        i = uintp(k)
        out[i] = number(line[i]) if places[i] == place else F(0)


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def tiles_of_maxima(maps: Bits, places: Places, channels: int, out: Bits) -> None:
    """The transposed of `maxima_of_tiles`: the gradients `maps` [N, rows, columns * C] at their places."""
    line = maps.shape[2]
    for n in prange(len(maps)):
        four = np.empty((4, line), np.float32)
        for ty in range(len(maps[n])):
            for place in range(4):
                _placed(maps[n, ty], places[n, ty], np.uint8(place), four[place])
            _spread(four, (n * len(maps[n]) + ty) * line, out)
