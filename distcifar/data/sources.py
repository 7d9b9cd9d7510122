"""Where labelled images come from: each source says whether it changed (digest) and delivers an ImageSet (read)."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from distcifar.config import DataConfig, did_you_mean
from distcifar.data.image_folder import FolderSource
from distcifar.data.images import ImageSet, LabelledImages
from distcifar.data.npz import NpzSource
from distcifar.data.official import OFFICIAL, OfficialSource
from distcifar.errors import DataError

KNOWN = (*OFFICIAL, "synthetic", "npz:FILE", "DIRECTORY")


class Source(Protocol):
    """Labelled images somewhere. Building one reads nothing."""

    @property
    def where(self) -> str:
        """What the manifest records: an absolute path, or a name."""
        ...

    @property
    def at_hand(self) -> bool:
        """Whether the digest can be had without a network."""
        ...

    def digest(self) -> str:
        """sha256, hex, of the source's content. Raises DataError if it cannot be read."""
        ...

    def read(self, scratch: Path) -> ImageSet:
        """All images; `scratch` is a folder for unpacking. Raises DataError."""
        ...


def open_source(config: DataConfig, root: Path, source: str = "", max_broken: float = 0.01) -> Source:
    """The source of `config.dataset`; `source` is a local copy of an official set, downloads go below `root`.

    Raises DataError for an unknown data set, or a `source` that is missing or not meant.
    """
    dataset = config.dataset
    if dataset in OFFICIAL:
        return _official(dataset, root, source)
    if source:
        raise DataError(
            f"--source {source} is given for {dataset}",
            f"Only {', '.join(OFFICIAL)} have a copy to point to",
            "Drop --source",
        )
    if dataset == "synthetic":
        return SyntheticSource()
    if dataset.startswith("npz:"):
        return NpzSource(Path(dataset.removeprefix("npz:")))
    if Path(dataset).is_dir() or "/" in dataset:
        return FolderSource(Path(dataset), config.size, max_broken)
    raise DataError(
        f"There is no data set {dataset!r}",
        "A data set is an official one, npz:FILE, synthetic, or a directory with a folder per class",
        did_you_mean(dataset, KNOWN),
    )


def _official(dataset: str, root: Path, source: str) -> Source:
    path = Path(source) if source else None
    if path is not None and not path.exists():
        raise DataError(
            f"--source {source} does not exist",
            f"It is {' and '.join(OFFICIAL[dataset].files)}, a folder that holds that, or an .npz file",
            "Correct the path, or drop --source if the set is prepared or may be downloaded",
        )
    if path is not None and path.suffix == ".npz":
        return NpzSource(path, OFFICIAL[dataset].class_names)
    return OfficialSource(dataset, path, root / "downloads")


@dataclass(frozen=True)
class SyntheticSource:
    """Ten classes of 32 x 32 RGB images made of random numbers, the same ones on every machine.

    A class is a pattern of blocks. A sample shows its class's pattern somewhere, under another class's fainter one
    and noise: small convolutional nets reach 91-99 % in two epochs of 1,792 images (measured), not 100 %.
    """

    num_train: int = 2048
    num_test: int = 512

    where = "synthetic"
    at_hand = True

    def digest(self) -> str:
        """sha256 of the pixels and labels, hex."""
        total = hashlib.sha256()
        image_set = self.read(Path())
        for part in (image_set.train, image_set.test):
            total.update(part.images.tobytes())
            total.update(part.labels.tobytes())
        return total.hexdigest()

    def read(self, scratch: Path) -> ImageSet:
        """Makes the images; needs no scratch folder."""
        labelled = synthetic_images(self.num_train + self.num_test)
        train, test = (
            LabelledImages(labelled.images[part], labelled.labels[part])
            for part in (slice(self.num_train), slice(self.num_train, None))
        )
        return ImageSet(train, test, tuple(f"pattern {index}" for index in range(10)))


def synthetic_images(num_samples: int, num_classes: int = 10, side: int = 32) -> LabelledImages:
    """`num_samples` images uint8 [N, side, side, 3]; class i % num_classes for sample i.

    Whole numbers and raw Philox bits only, so that no library version or processor changes a pixel.
    """
    bits = np.random.Philox(key=20090408)

    def random_bytes(*shape: int) -> NDArray[np.uint8]:
        count = int(np.prod(shape))
        return bits.random_raw(-(-count // 8)).astype("<u8").view(np.uint8)[:count].reshape(shape)

    blocks = random_bytes(num_classes, side // 4, side // 4, 3)
    patterns = np.tile(blocks.repeat(4, axis=1).repeat(4, axis=2), (1, 2, 2, 1))
    windows = np.lib.stride_tricks.sliding_window_view(patterns, (side, side), axis=(1, 2))

    def shown(classes: NDArray[np.int64]) -> NDArray[np.uint16]:
        row, column = (random_bytes(2, num_samples) % 12).astype(np.int64)
        return windows[classes, row, column].transpose(0, 2, 3, 1).astype(np.uint16)

    labels = np.arange(num_samples, dtype=np.int64) % num_classes
    others = (labels + 1 + random_bytes(num_samples) % (num_classes - 1)) % num_classes
    noise = random_bytes(num_samples, side, side, 3)
    mixed = (2 * shown(labels) + shown(others) + 2 * noise.astype(np.uint16)) // 5
    return LabelledImages(mixed.astype(np.uint8), labels)
