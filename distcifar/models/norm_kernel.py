"""Kernels for a CPU: 2x2 maximum, BatchNorm and GELU of bf16 maps, each value read and written once.

torch makes ten passes over such maps, and its pool keeps an 8-byte index for each maximum (what that costs:
docs/performance.md). numba has no bf16, so maps are its bits, uint16 [N, H, W * C] with channels innermost; the
arithmetic is float32. Sums are taken image by image: they do not depend on the number of threads.

One loop per task, each over one line of W * C values and few arrays: with more of them LLVM gives up proving that they
do not overlap and computes value by value. What belongs to a channel (a scale) is therefore repeated W times.
"""

import numpy as np
from numba import njit, prange, uintp
from numpy.typing import NDArray

from distcifar.models.bf16 import Bits
from distcifar.models.bf16_kernel import F, H, U, narrow, value, wide

Places = NDArray[np.uint8]
Words = NDArray[np.uint32]  # a bf16 and below it the place of a maximum, 0 to 3
Floats = NDArray[np.float32]


@njit(fastmath={"contract"}, error_model="numpy")
def _normal(z: np.float32) -> tuple[np.float32, np.float32]:
    """The normal distribution's Phi(z) and density, off by less than 2e-6: Abramowitz, Stegun 1964, 26.2.17.

    exp(-z^2/2) as 2^n times a polynomial: Taylor's of 2^f for |f| <= 1/2, n put into the exponent's bits.
    """
    power = max(F(-0.72134752) * z * z, F(-126.0))  # NaN stays: a comparison with it is false
    whole = np.floor(power + F(0.5))
    f = power - whole
    series = F(1.3333558e-3) * f + F(9.6181291e-3)
    series = series * f + F(5.5504109e-2)
    series = series * f + F(2.4022651e-1)
    series = series * f + F(6.9314718e-1)
    series = series * f + F(1.0)
    exponent = U(np.int32(whole) + np.int32(127)) << U(23)
    density = F(0.39894228) * series * U(exponent).view(np.float32)
    t = F(1.0) / (F(1.0) + F(0.2316419) * abs(z))
    tail = F(1.330274429) * t - F(1.821255978)
    tail = tail * t + F(1.781477937)
    tail = tail * t - F(0.356563782)
    tail = (tail * t + F(0.319381530)) * t * density
    return (tail if z < F(0.0) else F(1.0) - tail), density


@njit(fastmath={"contract"}, error_model="numpy")
def _goes_before(b: np.uint32, a: np.uint32) -> np.bool_:
    """Whether the maximum of two words is b: the larger value or NaN, of equal ones that of the earlier place."""
    x, y = value(a), value(b)
    return y > x or y != y or (y == x and U(b & U(3)) < U(a & U(3)))


@njit(fastmath={"contract"}, error_model="numpy")
def _maxima_of_rows(above: Bits, below: Bits, out: Words) -> None:
    for k in range(len(out)):
        i = uintp(k)
        a, b = wide(above[i]), U(wide(below[i]) | U(2))
        out[i] = b if _goes_before(b, a) else a


@njit(fastmath={"contract"}, error_model="numpy")
def _maxima_of_columns(left: Words, right: Words, out: Words) -> None:
    for k in range(len(out)):
        i = uintp(k)
        a, b = left[i], U(right[i] | U(1))
        out[i] = b if _goes_before(b, a) else a


@njit(fastmath={"contract"}, error_model="numpy")
def _split(words: Words, kept: Bits, places: Places) -> None:
    for k in range(len(words)):
        i = uintp(k)
        kept[i] = H(U(words[i] >> U(16)))
        places[i] = np.uint8(words[i] & U(3))


@njit(fastmath={"contract"}, error_model="numpy")
def _summed(line: Bits, pivot: Floats, total: Floats, squares: Floats) -> None:
    for k in range(len(line)):
        i = uintp(k)
        off = value(wide(line[i])) - pivot[i]
        total[i] += off
        squares[i] += off * off


@njit(fastmath={"contract"}, error_model="numpy")
def _activated(line: Bits, scale: Floats, offset: Floats, out: Bits) -> None:
    for k in range(len(line)):
        i = uintp(k)
        z = value(wide(line[i])) * scale[i] + offset[i]
        share, _ = _normal(z)
        out[i] = narrow(z * share)


@njit(fastmath={"contract"}, error_model="numpy")
def _slopes(line: Bits, scale: Floats, offset: Floats, given: Bits, out: Bits) -> None:
    for k in range(len(line)):
        i = uintp(k)
        z = value(wide(line[i])) * scale[i] + offset[i]
        share, density = _normal(z)
        out[i] = narrow(value(wide(given[i])) * (share + z * density))


@njit(fastmath={"contract"}, error_model="numpy")
def _moments(line: Bits, slopes: Bits, total: Floats, products: Floats) -> None:
    for k in range(len(line)):
        i = uintp(k)
        slope = value(wide(slopes[i]))
        total[i] += slope
        products[i] += slope * value(wide(line[i]))


@njit(fastmath={"contract"}, error_model="numpy")
def _combined(line: Bits, slopes: Bits, by_slope: Floats, by_value: Floats, rest: Floats, out: Bits) -> None:
    for k in range(len(line)):
        i = uintp(k)
        out[i] = narrow(value(wide(slopes[i])) * by_slope[i] + (value(wide(line[i])) * by_value[i] + rest[i]))


@njit(fastmath={"contract"}, error_model="numpy")
def _placed(places: Places, values: Bits, place: np.uint8, out: Bits) -> None:
    for k in range(len(out)):
        i = uintp(k)
        out[i] = values[i] if places[i] == place else H(0)


@njit(fastmath={"contract"}, error_model="numpy")
def _copied(line: Bits, out: Bits) -> None:
    for k in range(len(out)):
        out[uintp(k)] = line[uintp(k)]


@njit(fastmath={"contract"}, error_model="numpy")
def _folded(lines: Floats, sums: Floats) -> None:
    """Adds `lines` [2, W * C] channel by channel to `sums` [2, C]."""
    for row in range(2):
        for start in range(0, lines.shape[1], sums.shape[1]):
            for channel in range(sums.shape[1]):
                sums[row, channel] += lines[row, start + channel]


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def pool(maps: Bits, kept: Bits, places: Places, pivot: Floats, sums: Floats) -> None:
    """`kept` and `places` [N, H, W * C]: the maxima of `maps` [N, 2H, 2W * C]; `sums` as in `measure`."""
    channels = sums.shape[2]
    for n in prange(len(kept)):
        lines = np.zeros((2, kept.shape[2]), np.float32)
        rows, words = np.empty(maps.shape[2], np.uint32), np.empty(kept.shape[2], np.uint32)
        for y in range(kept.shape[1]):
            _maxima_of_rows(maps[n, 2 * y], maps[n, 2 * y + 1], rows)
            for x in range(0, len(words), channels):
                middle = 2 * x + channels
                _maxima_of_columns(rows[2 * x : middle], rows[middle : middle + channels], words[x : x + channels])
            _split(words, kept[n, y], places[n, y])
            _summed(kept[n, y], pivot, lines[0], lines[1])
        _folded(lines, sums[n])


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def measure(kept: Bits, pivot: Floats, sums: Floats) -> None:
    """Adds to `sums` [N, 2, C] by what `kept` [N, H, W * C] differs from `pivot` [W * C], and the squares of it.

    A pivot near the mean keeps the difference of sums exact in float32.
    """
    for n in prange(len(kept)):
        lines = np.zeros((2, kept.shape[2]), np.float32)
        for y in range(kept.shape[1]):
            _summed(kept[n, y], pivot, lines[0], lines[1])
        _folded(lines, sums[n])


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def activate(kept: Bits, scale: Floats, offset: Floats, out: Bits) -> None:
    """`out` = GELU(scale * kept + offset): [N, H, W * C] and [W * C]."""
    for n in prange(len(kept)):
        for y in range(kept.shape[1]):
            _activated(kept[n, y], scale, offset, out[n, y])


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def activation_gradient(kept: Bits, scale: Floats, offset: Floats, given: Bits, slopes: Bits, sums: Floats) -> None:
    """`slopes`: the gradient before the GELU whose result had `given`; adds to `sums` [N, 2, C] it and it * kept."""
    for n in prange(len(kept)):
        lines = np.zeros((2, kept.shape[2]), np.float32)
        for y in range(kept.shape[1]):
            _slopes(kept[n, y], scale, offset, given[n, y], slopes[n, y])
            _moments(kept[n, y], slopes[n, y], lines[0], lines[1])
        _folded(lines, sums[n])


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def norm_gradient(kept: Bits, slopes: Bits, parts: Floats, out: Bits) -> None:
    """`out` = parts[0] * slopes + parts[1] * kept + parts[2]: [N, H, W * C] and [3, W * C]."""
    for n in prange(len(kept)):
        for y in range(kept.shape[1]):
            _combined(kept[n, y], slopes[n, y], parts[0], parts[1], parts[2], out[n, y])


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def pool_gradient(kept: Bits, places: Places, slopes: Bits, parts: Floats, channels: int, out: Bits) -> None:
    """The same at each maximum's place in `out` [N, 2H, 2W * C], 0 at the other three."""
    for n in prange(len(kept)):
        line, corner = np.empty(kept.shape[2], np.uint16), np.empty(kept.shape[2], np.uint16)
        for y in range(kept.shape[1]):
            _combined(kept[n, y], slopes[n, y], parts[0], parts[1], parts[2], line)
            for place in range(4):
                _placed(places[n, y], line, np.uint8(place), corner)
                row, first = out[n, 2 * y + place // 2], (place % 2) * channels
                for x in range(0, len(line), channels):
                    _copied(corner[x : x + channels], row[first + 2 * x : first + 2 * x + channels])
