"""One small split for the tests of stores and loaders: resident, and streamed by one thread and by two."""

from pathlib import Path

import numba
import numpy as np
import pytest
import torch

from distcifar.data.beton import write_beton
from distcifar.data.stores import ResidentStore, Store, StreamedStore

CPU = torch.device("cpu")
SIZE = 8
N = 33  # leaves one sample for the last batch of 8 or 4: most ranks have no share of it
IMAGES = np.random.default_rng(0).integers(0, 256, (N, SIZE, SIZE, 3), dtype=np.uint8)
IMAGES[:, 0, 0, 0] = np.arange(N)  # each image shows its id in its first pixel, and its label follows from the id
LABELS = np.arange(N, dtype=np.int64) * 7 % 10

RESIDENT, ONE_THREAD, TWO_THREADS = "resident", "streamed by 1 thread", "streamed by 2 threads"
two_cores = pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="numba refuses more threads than cores")
KINDS = [RESIDENT, ONE_THREAD, pytest.param(TWO_THREADS, marks=two_cores)]


@pytest.fixture(scope="session")
def beton(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stores") / "train.beton"
    write_beton(path, IMAGES, LABELS)
    return path


@pytest.fixture(scope="session")
def stores(beton: Path) -> dict[str, Store]:
    """By kind; shared, since FFCV compiles for each batch size that a store meets."""
    return {
        RESIDENT: ResidentStore(IMAGES, LABELS, CPU),
        ONE_THREAD: StreamedStore(beton, N, CPU, threads=1),
        TWO_THREADS: StreamedStore(beton, N, CPU, threads=2),
    }


@pytest.fixture
def resident(stores: dict[str, Store]) -> Store:
    return stores[RESIDENT]


@pytest.fixture
def streamed(stores: dict[str, Store]) -> Store:
    return stores[ONE_THREAD]
