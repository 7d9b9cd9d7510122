"""Prepare a data set once: read its source, split it, write sealed betons, all or nothing.

A folder that is there was written whole; what was damaged since, `open_prepared` tells.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from distcifar.config import DataConfig
from distcifar.config.values import require
from distcifar.data.beton import file_bytes, seal, verify, write_beton
from distcifar.data.images import ImageSet, LabelledImages, channel_statistics, class_counts, with_size
from distcifar.data.manifest import (
    SPLITS,
    Manifest,
    file_config,
    folder_name,
    prepare_command,
    recorded_source,
)
from distcifar.data.official import OFFICIAL
from distcifar.data.sources import Source, open_source
from distcifar.data.split import train_val_indices
from distcifar.data.staging import exclusive, require_space, staged, storage_errors
from distcifar.errors import DataError
from distcifar.files import write_json


@dataclass(frozen=True)
class PreparedData:
    """A folder of sealed betons, verified."""

    folder: Path
    manifests: dict[str, Manifest]
    """By split: train, test, and val if images were held out."""

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
        """The training split's manifest; shape, classes, mean and std are the same in all."""
        return self.manifests["train"]

    @property
    def digest(self) -> str:
        """sha256, hex, over the digests of all splits: the name of these data in a checkpoint."""
        digests = [self.manifests[split].digest for split in SPLITS if split in self.manifests]
        return hashlib.sha256("".join(digests).encode()).hexdigest()


def open_prepared(config: DataConfig, root: Path, source: str = "") -> PreparedData | None:
    """The prepared data of `config` below `root`, every byte verified; None if there are none. Reads no source.

    source: as given to `prepare`, to be named in the repair command. Raises DataError for damage.
    """
    folder = root / folder_name(config)
    if not folder.is_dir():
        return None
    repair = _repair_command(config, root, source)
    splits = [split for split in SPLITS if split != "val" or config.validation]
    manifests = {split: verify(folder / f"{split}.beton", repair=repair) for split in splits}
    for split, manifest in manifests.items():
        name = folder_name(manifest.data)
        if name != folder.name or manifest.source_digest != manifests["train"].source_digest:
            raise DataError(
                f"{folder / split}.beton was prepared for {name} from {manifest.source}",
                "All files of a folder come from the one preparation that it is named after",
                f"Write them again with `{repair}`",
            )
    return PreparedData(folder, manifests)


def prepare(
    config: DataConfig,
    root: Path,
    source: str = "",
    *,
    announce: Callable[[str], None],
    repair: bool = False,
    max_broken: float = 0.01,
) -> PreparedData:
    """The prepared data of `config` below `root`, verified; written first if they are not there.

    source: a local copy of an official set. announce: is told what happens. repair: write anew what is damaged or
    comes from another version of the source. max_broken: share of a directory's images that may fail to decode.
    Raises DataError for a bad source or damaged files, StorageError for lack of space or permission.
    """
    origin = open_source(config, root, source, max_broken)

    def existing() -> PreparedData | None:
        try:
            prepared = open_prepared(config, root, source)
            if prepared:
                _require_same_source(prepared, origin, _repair_command(config, root, source), announce)
        except DataError as error:
            if not repair:
                raise
            announce(f"Writing anew, because: {error.found}")
            return None
        return prepared

    folder = root / folder_name(config)
    with storage_errors(root):
        if not repair and (prepared := existing()):  # who only reads needs no lock and no write permission
            return prepared
        with exclusive(folder, announce):
            if prepared := existing():  # another process wrote it while this one waited
                return prepared
            with staged(folder) as (ready, scratch):
                manifests = _write(config, origin, ready, scratch, announce)
    return PreparedData(folder, manifests)


def _repair_command(config: DataConfig, root: Path, source: str) -> str:
    source = source or recorded_source(root / folder_name(config))
    return f"{prepare_command(config, root, source)} --repair"


def _require_same_source(prepared: PreparedData, origin: Source, repair: str, announce: Callable[[str], None]) -> None:
    """Raises DataError if the source is there and is not the one that was prepared."""
    manifest = prepared.manifest
    if not origin.at_hand:
        if manifest.data.dataset not in OFFICIAL:
            announce(f"{origin.where} is not there: using what was prepared from {manifest.source}")
        return
    if (digest := origin.digest()) != manifest.source_digest:
        raise DataError(
            f"{prepared.folder} was made from {manifest.source} with sha256 {manifest.source_digest}, "
            f"and {origin.where} has {digest}",
            "A prepared folder holds one version of its source",
            f"Give another --root, or replace it with `{repair}`",
        )


def _write(
    config: DataConfig, origin: Source, ready: Path, scratch: Path, announce: Callable[[str], None]
) -> dict[str, Manifest]:
    """Reads the source and writes every split into `ready`, sealed and flushed to disk."""
    announce(f"Reading {config.dataset} from {origin.where}")
    source_digest = origin.digest()
    image_set = with_size(origin.read(scratch), config.size)
    for note in image_set.notes:
        announce(note)
    splits = _split(image_set, config)
    height, width, channels = splits["train"].shape
    _require_storable(config, channels)
    image_bytes = height * width * channels
    require_space(ready, sum(file_bytes(len(part), image_bytes, config.storage) for part in splits.values()))
    mean, std = channel_statistics(splits["train"].parts())
    manifests = {}
    for split, part in splits.items():
        path = ready / f"{split}.beton"
        write_beton(path, part.store, part.labels, config.storage, rows=part.rows)
        draft = Manifest(
            split=split,
            data=file_config(config),
            source=origin.where,
            source_digest=source_digest,
            class_names=image_set.class_names,
            class_counts=class_counts(part.labels, len(image_set.class_names)),
            height=height,
            width=width,
            channels=channels,
            mean=mean,
            std=std,
        )
        manifests[split] = seal(path, draft)
    if image_set.broken:
        broken = [{"path": path, "reason": reason} for path, reason in image_set.broken]
        write_json(ready / "quarantine.json", {"source": origin.where, "broken": broken})
        announce(f"{len(image_set.broken)} images cannot be decoded and are left out: see quarantine.json")
    return manifests


def _require_storable(config: DataConfig, channels: int) -> None:
    """Raises ConfigError for JPEGs of grey images."""
    require(
        config.storage == "raw" or channels == 3,
        f"data.storage is {config.storage!r} and {config.dataset} has grey images",
        "FFCV's JPEGs have three channels",
        "Use --data.storage raw (with jobs/prepare.py: --storage raw)",
    )


def _split(image_set: ImageSet, config: DataConfig) -> dict[str, LabelledImages]:
    """train, val (if any) and test. Raises DataError if a class would have no training image."""
    labels = image_set.train.labels
    train, val = train_val_indices(labels, config.validation, config.train_first, config.split_seed)
    counts = class_counts(labels[train], len(image_set.class_names))
    missing = [name for name, count in zip(image_set.class_names, counts, strict=True) if not count]
    if missing:
        raise DataError(
            f"No training image shows {', '.join(missing[:10])}",
            "Each class has training images",
            "Add some, hold out fewer (--validation), train on more (--train-first), or drop the class",
        )
    parts = {"train": image_set.train.take(train), "val": image_set.train.take(val), "test": image_set.test}
    return {split: part for split, part in parts.items() if len(part)}
