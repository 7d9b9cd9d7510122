"""The sidecar of a beton: what the file holds, and digests by which any damage to either is found.

`train.beton` has `train.beton.json` beside it. The sidecar's own `seal` is the sha256 of everything else in it,
and its text has exactly one form, so that not a byte of it can change unnoticed.
"""

import hashlib
import json
import math
import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distcifar.config import DataConfig, from_dict, to_dict
from distcifar.data.official import OFFICIAL
from distcifar.errors import ConfigError, DataError

FORMAT_VERSION = 2
BLOCK_BYTES = 1 << 20  # a damage is told to 1 MiB; 64 hex digits per block keep a sidecar at 0.01 % of its beton
SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What one beton holds."""

    format_version: int = FORMAT_VERSION
    split: str
    """train, val or test; also the file's name."""
    data: DataConfig
    """What was asked for, as `file_config` leaves it."""
    source: str
    """Where the images were read from: an absolute path, "the network", or "synthetic"."""
    source_digest: str
    """sha256 of that source's content, hex."""
    class_names: tuple[str, ...]
    class_counts: tuple[int, ...]
    """Samples of each class in this split."""
    height: int
    width: int
    channels: int
    """1 (grey) or 3 (RGB)."""
    mean: tuple[float, ...]
    """Of each channel over the training split, 0-1 scale, before JPEG; the same in all splits."""
    std: tuple[float, ...]
    """Population standard deviation, likewise."""
    size_bytes: int = 0
    """Length of the beton file."""
    blocks: tuple[str, ...] = ()
    """sha256 of each BLOCK_BYTES of the beton file, hex; the last block may be shorter."""

    @property
    def num_samples(self) -> int:
        """Images in this split."""
        return sum(self.class_counts)

    @property
    def num_classes(self) -> int:
        """Classes of the data set."""
        return len(self.class_names)

    @property
    def size(self) -> int:
        """Side of the square images in pixels."""
        return self.height

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image: height, width, channels."""
        return self.height, self.width, self.channels

    @property
    def pixel_bytes(self) -> int:
        """Memory of all images once they are decoded."""
        return self.num_samples * math.prod(self.shape)

    @property
    def digest(self) -> str:
        """sha256, hex, of what reaches a model: the file's content and what its labels mean."""
        meaning = [self.split, self.class_names, [self.height, self.width, self.channels], self.blocks]
        return hashlib.sha256(_canonical(meaning)).hexdigest()


def file_config(config: DataConfig) -> DataConfig:
    """The part of a DataConfig that decides what is in the files; normalisation is chosen when training."""
    return DataConfig(
        dataset=config.dataset,
        validation=config.validation,
        train_first=config.train_first,
        size=config.size,
        split_seed=config.split_seed,
        storage=config.storage,
    )


def folder_name(config: DataConfig) -> str:
    """The name of the folder of the prepared files, for example cifar10-val5000-first10000.

    Files and folders of one's own are known by their last name only, so that the name does not depend on the
    working directory or the machine; two of the same name are told apart by their source digest.
    """
    dataset = config.dataset
    if dataset.startswith("npz:"):
        dataset = "npz-" + Path(dataset.removeprefix("npz:")).stem
    elif dataset not in (*OFFICIAL, "synthetic"):
        dataset = "folder-" + Path(os.path.abspath(dataset)).name
    options = (("first", config.train_first), ("size", config.size), ("split", config.split_seed))
    parts = [f"{name}{value}" for name, value in options if value]
    parts += ["jpeg"] if config.storage == "jpeg" else []
    return "-".join([re.sub(r"[^\w.\-]", "_", dataset), f"val{config.validation}", *parts])


def prepare_command(config: DataConfig, root: Path | str, source: str = "") -> str:
    """The command that prepares `config` under `root`, quoted for a shell."""
    options = {
        "source": source,
        "root": "" if str(root) == "data" else str(root),
        "validation": str(config.validation),
        "size": config.size,
        "train-first": config.train_first,
        "split-seed": config.split_seed,
        "storage": "" if config.storage == "raw" else config.storage,
    }
    words = ["python", "jobs/prepare.py", config.dataset]
    for name, value in options.items():
        words += [f"--{name}", str(value)] if value else []
    return shlex.join(words)


def sidecar_of(path: Path) -> Path:
    """The sidecar of the beton at `path`."""
    return path.with_name(path.name + ".json")


def to_text(manifest: Manifest) -> str:
    """The one text of a sidecar: indented JSON, sealed."""
    fields = to_dict(manifest)
    return json.dumps({**fields, "seal": _seal(fields)}, indent=1, ensure_ascii=False) + "\n"


def from_text(text: bytes, path: Path, remedy: str) -> Manifest:
    """`to_text` undone, strictly. Raises DataError naming the sidecar `path` if a single byte is not as written."""
    damaged = DataError(
        f"{path} is damaged (within bytes 0-{max(len(text) - 1, 0)}: the text does not match its own seal)",
        "A sidecar is read only as it was written",
        remedy,
    )
    try:
        fields = json.loads(text)
        seal = fields.pop("seal")
        whole = seal == _seal(fields)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise damaged from None
    if not whole:
        raise damaged
    if fields.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"{path} has format version {fields.get('format_version')!r}",
            f"This program reads version {FORMAT_VERSION}",
            remedy,
        )
    try:
        manifest = from_dict(Manifest, fields)
    except (ConfigError, TypeError):  # sealed by something that is not this program
        raise damaged from None
    if to_text(manifest).encode() != text:  # the same JSON in another writing: spaces, escapes, order
        raise damaged
    return manifest


def read_manifest(path: Path, remedy: str) -> Manifest:
    """The manifest of the beton at `path` (the beton itself is not read). Raises DataError."""
    sidecar = sidecar_of(path)
    try:
        text = sidecar.read_bytes()
    except OSError as error:
        raise DataError(
            f"{sidecar} cannot be read: {error.strerror}", "Each beton has its sidecar beside it", remedy
        ) from None
    return from_text(text, sidecar, remedy)


def any_manifest(folder: Path) -> Manifest | None:
    """The first manifest of a prepared folder that is whole; None if there is none."""
    for split in SPLITS:
        try:
            return read_manifest(folder / f"{split}.beton", "")
        except DataError:
            continue
    return None


def recorded_source(folder: Path) -> str:
    """What --source was when `folder` was prepared; empty after a download, for one's own data, and if unknown."""
    manifest = any_manifest(folder)
    local = manifest and manifest.data.dataset in OFFICIAL and os.path.isabs(manifest.source)
    return manifest.source if manifest and local else ""


def repair_command(path: Path) -> str:
    """The command that writes the beton at `path` anew, as far as the sidecars of its folder tell."""
    folder = path.absolute().parent
    manifest = any_manifest(folder)
    if manifest is None:
        return f"python jobs/prepare.py DATASET --root {shlex.quote(str(folder.parent))} --repair"
    return prepare_command(manifest.data, folder.parent, recorded_source(folder)) + " --repair"


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _seal(fields: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical(fields)).hexdigest()
