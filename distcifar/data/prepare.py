"""Prepare a data set once: read its source, split it, write sealed betons, all or nothing.

Everything is written into a temporary folder beside the final one and takes its name at the end, so that a folder
that is there is whole, or was damaged later, which `open_prepared` tells. A lock lets one process at a time write.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from distcifar.config import DataConfig
from distcifar.data.beton import file_bytes, seal, verify, write_beton
from distcifar.data.images import ImageSet, LabelledImages, channel_statistics, class_counts, with_size
from distcifar.data.manifest import (
    SPLITS,
    Manifest,
    file_config,
    folder_name,
    prepare_command,
    recorded_source,
    repair_command,
)
from distcifar.data.sources import Source, open_source
from distcifar.data.split import train_val_indices
from distcifar.errors import DataError, StorageError


@dataclass(frozen=True)
class PreparedData:
    """A folder of sealed betons, verified."""

    folder: Path
    manifests: dict[str, Manifest]
    """By split: train, test, and val if there is one."""

    @property
    def train(self) -> Path:
        """The training beton."""
        return self.folder / "train.beton"

    @property
    def val(self) -> Path | None:
        """The validation beton; None if no images were held out."""
        return self.folder / "val.beton" if "val" in self.manifests else None

    @property
    def test(self) -> Path:
        """The test beton."""
        return self.folder / "test.beton"

    @property
    def manifest(self) -> Manifest:
        """The training split's manifest: shape, classes, mean and std are the same in all."""
        return self.manifests["train"]

    @property
    def digest(self) -> str:
        """sha256, hex, over the digests of all splits: the data's name in a checkpoint."""
        digests = [self.manifests[split].digest for split in SPLITS if split in self.manifests]
        return hashlib.sha256("".join(digests).encode()).hexdigest()


def open_prepared(config: DataConfig, root: Path, source: str = "") -> PreparedData | None:
    """The prepared data of `config` below `root`, every byte verified; None if there is none. Reads no source.

    source: as given to `prepare`, for the repair command. Raises DataError for what is damaged or foreign.
    """
    folder = root / folder_name(config)
    if not folder.is_dir():
        return None
    splits = [split for split in SPLITS if split != "val" or config.validation]
    repair = repair_command(folder / "train.beton") if not source else _repair(config, root, source)
    if "DATASET" in repair:  # no sidecar is whole
        repair = _repair(config, root, source)
    manifests = {split: verify(folder / f"{split}.beton", repair=repair) for split in splits}
    train = manifests["train"]
    for split, manifest in manifests.items():
        if folder_name(manifest.data) != folder.name or manifest.source_digest != train.source_digest:
            raise DataError(
                f"{folder / split}.beton was prepared as {folder_name(manifest.data)} from {manifest.source}",
                f"All files of {folder} come from one preparation of that name",
                f"Write them again: {repair}",
            )
    return PreparedData(folder, manifests)


def _repair(config: DataConfig, root: Path, source: str) -> str:
    return f"{prepare_command(config, root, source)} --repair"


def prepare(
    config: DataConfig,
    root: Path,
    source: str = "",
    *,
    announce: Callable[[str], None],
    repair: bool = False,
    max_broken: float = 0.01,
) -> PreparedData:
    """Brings the prepared data of `config` below `root` about; verifies and returns it if it is there.

    source: a local copy of an official set. announce: is told what is done. repair: write anew what is damaged or
    was made from another source. max_broken: the share of images of a directory that may fail to decode.
    Raises DataError for a bad source or damaged files, StorageError for no space or no permission.
    """
    origin = open_source(config, root, source, max_broken)
    done = _find(config, root, source, origin, announce, repair=repair)
    if done is None:
        with _storage_errors(root):
            root.mkdir(parents=True, exist_ok=True)
            with _lock(root, folder_name(config), announce):
                # another process may have done it while this one waited
                done = _find(config, root, source, origin, announce, repair=repair)
                return done or _write(config, root, origin, announce)
    return done


def _find(
    config: DataConfig,
    root: Path,
    source: str,
    origin: Source,
    announce: Callable[[str], None],
    *,
    repair: bool,
) -> PreparedData | None:
    """What is prepared already and of this source, or None if it must be written. Needs no write permission."""
    try:
        done = open_prepared(config, root, source)
        if done is None:
            return None
        if not origin.at_hand:
            return done
        digest = origin.digest()
        if digest == done.manifest.source_digest:
            return done
        raise DataError(
            f"{done.folder} was made from {done.manifest.source} (sha256 {done.manifest.source_digest}), "
            f"and {origin.where} has sha256 {digest}",
            "A prepared folder holds one version of its source",
            f"Give another --root, or replace it: {_repair(config, root, source)}",
        )
    except DataError as error:
        if not repair:
            raise
        announce(f"Writing anew: {error.found}")
        return None
