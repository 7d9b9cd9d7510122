"""Kernels for a CPU: the results' part of Winograd's F(4x4, 3x3), A' m A, with a 2x2 pool or without, and its gradient.

The matrices, and how maps and tiles lie, stand in winograd_kernel.py. A tile's 16 results are 16 lines of C values.
"""

import numpy as np
from numba import njit, prange, uintp
from numpy.typing import NDArray

from distcifar.models.bf16 import Bits
from distcifar.models.bf16_kernel import F, narrow, narrow_line, number
from distcifar.models.winograd_kernel import HIGH, LOW

Floats = NDArray[np.float32]
Places = NDArray[np.uint8]


@njit(fastmath={"contract"}, error_model="numpy")
def _columns_out(tiles: Bits, row: int, first: int, out: Floats) -> None:
    """m A for a row of six of the tile that begins at `first`: `tiles` [36, lines] to `out` [row, 4, C]."""
    y0, y1, y2, y3 = out[row, 0], out[row, 1], out[row, 2], out[row, 3]
    z, j = first + len(y0), 6 * row
    m0, m1, m2 = tiles[j, first:z], tiles[j + 1, first:z], tiles[j + 2, first:z]
    m3, m4, m5 = tiles[j + 3, first:z], tiles[j + 4, first:z], tiles[j + 5, first:z]
    a, b = F(LOW), F(HIGH)
    for k in range(len(y0)):
        i = uintp(k)
        p, q, r, s = number(m1[i]), number(m2[i]), number(m3[i]), number(m4[i])
        even, odd, further, other = p + q, a * (p - q), r + s, b * (r - s)
        y0[i], y1[i] = number(m0[i]) + (even + further), odd + other
        y2[i], y3[i] = F(0.5) * even + F(2) * further, F(0.5) * odd + F(2) * other + number(m5[i])


@njit(fastmath={"contract"}, error_model="numpy")
def _rows_out(m: Floats, column: int, out: Floats) -> None:
    """A' m for one of four columns: `m` [6, 4, C] to `out` [16, C]."""
    m0, m1, m2 = m[0, column], m[1, column], m[2, column]
    m3, m4, m5 = m[3, column], m[4, column], m[5, column]
    y0, y1, y2, y3 = out[column], out[4 + column], out[8 + column], out[12 + column]
    a, b = F(LOW), F(HIGH)
    for k in range(len(m0)):
        i = uintp(k)
        even, odd, further, other = m1[i] + m2[i], a * (m1[i] - m2[i]), m3[i] + m4[i], b * (m3[i] - m4[i])
        y0[i], y1[i] = m0[i] + (even + further), odd + other
        y2[i], y3[i] = F(0.5) * even + F(2) * further, F(0.5) * odd + F(2) * other + m5[i]


@njit(fastmath={"contract"}, error_model="numpy")
def _results(tiles: Bits, first: int, between: Floats, out: Floats) -> None:
    """A' m A of the tile that begins at `first`: [16, C]."""
    for row in range(6):
        _columns_out(tiles, row, first, between)
    for column in range(4):
        _rows_out(between, column, out)


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def maps_of_tiles(tiles: Bits, channels: int, rows: int, columns: int, out: Bits) -> None:
    """A' m A of every tile: [36, N * rows * columns * C] to `out` [N, H, W * C], as far as that reaches."""
    c, width = channels, out.shape[2] // channels
    for n in prange(len(out)):
        between, sixteen = np.empty((6, 4, c), np.float32), np.empty((16, c), np.float32)
        for ty in range(rows):
            for tx in range(columns):
                _results(tiles, ((n * rows + ty) * columns + tx) * c, between, sixteen)
                for y in range(4 * ty, min(4 * ty + 4, out.shape[1])):
                    for x in range(4 * tx, min(4 * tx + 4, width)):
                        narrow_line(sixteen[y % 4 * 4 + x % 4], out[n, y, x * c : x * c + c])


@njit(fastmath={"contract"}, error_model="numpy")
def _maxima(results: Floats, first: int, out: Bits, places: Places) -> None:
    """The largest or NaN of the 2x2 `results` [16, C] from `first` on, and which: of equal ones the first."""
    r0, r1, r2, r3 = results[first], results[first + 1], results[first + 4], results[first + 5]
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
    """The largest of each 2x2 results: `out` [N, H/2, W/2 * C], and its place, 0 to 3."""
    c, width = channels, out.shape[2] // channels
    for n in prange(len(out)):
        between, sixteen = np.empty((6, 4, c), np.float32), np.empty((16, c), np.float32)
        for ty in range(rows):
            for tx in range(columns):
                _results(tiles, ((n * rows + ty) * columns + tx) * c, between, sixteen)
                for y in range(2 * ty, min(2 * ty + 2, out.shape[1])):
                    for x in range(2 * tx, min(2 * tx + 2, width)):
                        first, a = y % 2 * 8 + x % 2 * 2, x * c
                        _maxima(sixteen, first, out[n, y, a : a + c], places[n, y, a : a + c])


@njit(fastmath={"contract"}, error_model="numpy")
def _rows_spread(y: Floats, column: int, out: Floats) -> None:
    """A y for one of four columns: `y` [16, C] to `out` [6, 4, C]."""
    y0, y1, y2, y3 = y[column], y[4 + column], y[8 + column], y[12 + column]
    z0, z1, z2 = out[0, column], out[1, column], out[2, column]
    z3, z4, z5 = out[3, column], out[4, column], out[5, column]
    a, b = F(LOW), F(HIGH)
    for k in range(len(y0)):
        i = uintp(k)
        even, odd = y0[i] + F(0.5) * y2[i], a * (y1[i] + F(0.5) * y3[i])
        further, other = y0[i] + F(2) * y2[i], b * (y1[i] + F(2) * y3[i])
        z0[i], z5[i] = y0[i], y3[i]
        z1[i], z2[i], z3[i], z4[i] = even + odd, even - odd, further + other, further - other


@njit(fastmath={"contract"}, error_model="numpy")
def _columns_spread(y: Floats, row: int, first: int, out: Bits) -> None:
    """y A' for one of six rows: `y` [6, 4, C] to the tile of `out` [36, lines] that begins at `first`."""
    y0, y1, y2, y3 = y[row, 0], y[row, 1], y[row, 2], y[row, 3]
    z, j = first + len(y0), 6 * row
    z0, z1, z2 = out[j, first:z], out[j + 1, first:z], out[j + 2, first:z]
    z3, z4, z5 = out[j + 3, first:z], out[j + 4, first:z], out[j + 5, first:z]
    a, b = F(LOW), F(HIGH)
    for k in range(len(y0)):
        i = uintp(k)
        even, odd = y0[i] + F(0.5) * y2[i], a * (y1[i] + F(0.5) * y3[i])
        further, other = y0[i] + F(2) * y2[i], b * (y1[i] + F(2) * y3[i])
        z0[i], z5[i] = narrow(y0[i]), narrow(y3[i])
        z1[i], z2[i] = narrow(even + odd), narrow(even - odd)
        z3[i], z4[i] = narrow(further + other), narrow(further - other)


@njit(fastmath={"contract"}, error_model="numpy")
def _spread(results: Floats, between: Floats, first: int, out: Bits) -> None:
    """The transposed of `_results`: A y A' of a tile."""
    for column in range(4):
        _rows_spread(results, column, between)
    for row in range(6):
        _columns_spread(between, row, first, out)


@njit(fastmath={"contract"}, error_model="numpy")
def _widened(line: Bits, out: Floats) -> None:
    for k in range(len(out)):
        i = uintp(k)
        out[i] = number(line[i])


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def tiles_of_gradients(maps: Bits, channels: int, rows: int, columns: int, out: Bits) -> None:
    """The transposed of `maps_of_tiles`: `maps` [N, H, W * C] to `out` [36, N * rows * columns * C]."""
    c, width = channels, maps.shape[2] // channels
    for n in prange(len(maps)):
        between, sixteen = np.empty((6, 4, c), np.float32), np.empty((16, c), np.float32)
        for ty in range(rows):
            for tx in range(columns):
                sixteen[:] = F(0)
                for y in range(4 * ty, min(4 * ty + 4, maps.shape[1])):
                    for x in range(4 * tx, min(4 * tx + 4, width)):
                        _widened(maps[n, y, x * c : x * c + c], sixteen[y % 4 * 4 + x % 4])
                _spread(sixteen, between, ((n * rows + ty) * columns + tx) * c, out)


@njit(fastmath={"contract"}, error_model="numpy")
def _placed(line: Bits, places: Places, place: np.uint8, out: Floats) -> None:
    """Of the values of a line those at `place`, 0 for the others."""
    for k in range(len(out)):
        i = uintp(k)
        out[i] = number(line[i]) if places[i] == place else F(0)


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def tiles_of_maxima(maps: Bits, places: Places, channels: int, rows: int, columns: int, out: Bits) -> None:
    """The transposed of `maxima_of_tiles`: the gradients `maps` [N, H/2, W/2 * C] at their places."""
    c, width = channels, maps.shape[2] // channels
    for n in prange(len(maps)):
        between, sixteen = np.empty((6, 4, c), np.float32), np.empty((16, c), np.float32)
        for ty in range(rows):
            for tx in range(columns):
                sixteen[:] = F(0)
                for y in range(2 * ty, min(2 * ty + 2, maps.shape[1])):
                    for x in range(2 * tx, min(2 * tx + 2, width)):
                        first, a = y % 2 * 8 + x % 2 * 2, x * c
                        for place in range(4):
                            to = sixteen[first + place // 2 * 4 + place % 2]
                            _placed(maps[n, y, a : a + c], places[n, y, a : a + c], np.uint8(place), to)
                _spread(sixteen, between, ((n * rows + ty) * columns + tx) * c, out)
