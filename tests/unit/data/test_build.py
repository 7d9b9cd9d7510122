"""Opening prepared data: what the loaders' threads are."""

import subprocess
import sys
from ctypes.util import find_library

import pytest

from distcifar.data.build import _use_threads
from distcifar.errors import ResourceError
from distcifar.world import World

LAYER = """
import numba, numpy, torch
from distcifar.data.build import _use_threads
from distcifar.world import World
torch.set_num_threads(1)
numba.config.NUMBA_NUM_THREADS = 2
_use_threads(1, World())
assert torch.get_num_threads() == 1
@numba.njit(parallel=True)
def add(values):
    for i in numba.prange(len(values)):
        values[i] += 1
add(numpy.zeros(8))
print(numba.threading_layer())
"""


@pytest.mark.skipif(not find_library("gomp"), reason="without OpenMP's library")
def test_threads_of_batches_do_not_hold_the_cores_that_the_network_wants():
    said = subprocess.run([sys.executable, "-c", LAYER], check=True, capture_output=True, text=True).stdout
    assert said.strip() == "omp"  # with TBB, where that is installed, a step takes 2 to 3 ms more


def test_more_threads_than_cores_are_refused():
    with pytest.raises(ResourceError, match="1000 on a machine"):
        _use_threads(1000, World())
