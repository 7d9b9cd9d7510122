"""bf16 numbers for numba, which has none: as their bits, uint16; the arithmetic is float32.

For all kernels on them: "contract" means that a product and a sum may be one operation, which makes no difference
from run to run. NaN and infinity stay what they are, for a diverging run is seen by them. "numpy" means that a division
by 0 is no error, for which each division would be looked at.
"""

import numpy as np
from numba import njit, uintp
from numpy.typing import NDArray

from distcifar.models.bf16 import Bits

F, U, H = np.float32, np.uint32, np.uint16


@njit(fastmath={"contract"}, error_model="numpy")
def value(word: np.uint32) -> np.float32:
    """The float of the bf16 in the upper half of a word."""
    return F(U(U(word) & U(0xFFFF0000)).view(np.float32))


@njit(fastmath={"contract"}, error_model="numpy")
def wide(bits: np.uint16) -> np.uint32:
    """The word whose upper half is a bf16."""
    return U(U(bits) << U(16))


@njit(fastmath={"contract"}, error_model="numpy")
def number(bits: np.uint16) -> np.float32:
    """The float of a bf16."""
    return value(wide(bits))


@njit(fastmath={"contract"}, error_model="numpy")
def narrow(wanted: np.float32) -> np.uint16:
    """The nearest bf16; of two as near the even one, as torch does."""
    bits = F(wanted).view(np.uint32)
    nearest = U(bits + U(0x7FFF) + U(U(bits >> U(16)) & U(1)))
    return H(U(nearest >> U(16))) if wanted == wanted else H(0x7FC0)  # the other: NaN


@njit(fastmath={"contract"}, error_model="numpy")
def narrow_line(line: NDArray[np.float32], out: Bits) -> None:
    """The nearest bf16 of as many values as `out` has place for."""
    for k in range(len(out)):
        i = uintp(k)
        out[i] = narrow(line[i])
