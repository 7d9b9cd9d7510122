"""samples.npz of a run directory: some test images, what they are and what they were taken for."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Samples = dict[str, NDArray[np.generic]]
ARRAYS = ("images", "labels", "predictions", "confidence")


def read_samples(folder: Path) -> Samples | None:
    """images uint8 [N, H, W, C], labels and predictions int64 [N], confidence float32 [N] (0-1); None if missing."""
    path = folder / "samples.npz"
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as found:
        return {name: found[name] for name in ARRAYS}
