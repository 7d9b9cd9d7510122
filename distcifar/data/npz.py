"""Images from an .npz file: train_x, train_y, and perhaps test_x, test_y and classes."""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distcifar.config import did_you_mean
from distcifar.data.digests import file_digest
from distcifar.data.images import ImageSet, checked
from distcifar.data.split import with_drawn_test
from distcifar.errors import DataError

_REQUIRED = ("train_x", "train_y")
_KEYS = (*_REQUIRED, "test_x", "test_y", "classes")
_FORMAT = "The file has train_x (uint8 [N, H, W, C]), train_y (integers [N]), and perhaps test_x, test_y, classes"


@dataclass(frozen=True)
class NpzSource:
    """The npz file at `path`; its `classes` array names the classes, else `class_names`, else their numbers."""

    path: Path
    class_names: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        return str(self.path.absolute())

    @property
    def at_hand(self) -> bool:
        return self.path.is_file()

    def digest(self) -> str:
        """sha256 of the file, hex."""
        return file_digest(self.path)

    def read(self, scratch: Path) -> ImageSet:
        """Reads each array once (1.5 s for CIFAR-10, deflated). Raises DataError for what does not fit."""
        arrays = _arrays(self.path)
        names = self._names(arrays)
        train = checked(arrays["train_x"], arrays["train_y"], len(names), f"train in {self.path.name}")
        if "test_x" in arrays:
            test = checked(arrays["test_x"], arrays["test_y"], len(names), f"test in {self.path.name}")
            return ImageSet(train, test, names)
        return with_drawn_test(train, names, f"{self.path.name} has no test_x")

    def _names(self, arrays: dict[str, Any]) -> tuple[str, ...]:
        labels = arrays["train_y"]
        if "classes" not in arrays:
            fits = labels.dtype.kind in "iu" and labels.size > 0
            count = max(int(labels.max()) + 1, 1) if fits else 1  # else `checked` says what is wrong with them
            if count > max(len(labels), len(self.class_names)):
                raise DataError(
                    f"The labels of train in {self.path.name} reach {count - 1} with {len(labels)} images",
                    "Labels run from 0 to the number of classes less one",
                    "Renumber them: np.unique(y, return_inverse=True)[1]",
                )
            return self.class_names or tuple(str(index) for index in range(count))
        names = arrays["classes"]
        if names.dtype.kind != "U" or names.ndim != 1 or len(set(names.tolist())) != len(names):
            raise DataError(
                f"classes in {self.path.name} is {names.dtype} of shape {list(names.shape)}",
                "classes is a list of different texts, the name of each label",
                'Save it, for example, as np.array(["cat", "dog"])',
            )
        return tuple(names.tolist())


def _arrays(path: Path) -> dict[str, Any]:
    """The arrays by name. Raises DataError for a damaged file, missing or unknown names, and pickled objects."""
    try:
        file = np.load(path, allow_pickle=False)  # never pickles: they run code
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("it holds one bare array")
        with file:
            _check_names(path, file.files)
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise DataError(
            f"{path} cannot be read: {error or type(error).__name__}",
            f"It must be an .npz file of plain arrays. {_FORMAT}",
            "Save it again with np.savez(FILE, train_x=..., train_y=...)",
        ) from None


def _check_names(path: Path, names: list[str]) -> None:
    unknown = [name for name in names if name not in _KEYS]
    missing = [name for name in _REQUIRED if name not in names]
    if ("test_x" in names) != ("test_y" in names):
        missing += [name for name in ("test_x", "test_y") if name not in names]
    if missing or unknown:
        lacks = f"lacks {', '.join(missing)}" if missing else ""
        has = f"has {', '.join(repr(name) for name in unknown)}" if unknown else ""
        hint = did_you_mean(unknown[0], missing or _KEYS) if unknown else "Save those arrays too"
        raise DataError(f"{path} {' and '.join(filter(None, (lacks, has)))}", _FORMAT, hint)
