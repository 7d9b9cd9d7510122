"""CIFAR-10, CIFAR-100, MNIST and Fashion-MNIST, read by torchvision from the official files.

torchvision states their URLs and md5s and checks the latter before it reads; downloading is ours, since
torchvision's neither resumes nor tries again. Importing torchvision costs 5 s: it is done when a set is read only.
"""

import gzip
import shutil
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distcifar.data.digests import file_digest, files_digest
from distcifar.data.download import fetch
from distcifar.data.images import ImageSet, LabelledImages, checked
from distcifar.errors import DataError

_IDX = tuple(f"{split}-{what}-ubyte.gz" for split in ("train", "t10k") for what in ("images-idx3", "labels-idx1"))


@dataclass(frozen=True)
class Official:
    """How torchvision calls a set and its files."""

    reader: str
    """Class in torchvision.datasets."""
    files: tuple[str, ...]
    """What is published: one archive, or the four gz files of MNIST's format."""
    folder: str
    """Where torchvision looks for them unpacked, below its root."""
    class_names: tuple[str, ...] = ()
    """In the order of the labels; empty: as the archive has them."""


OFFICIAL = {
    "cifar10": Official(
        "CIFAR10",
        ("cifar-10-python.tar.gz",),
        "cifar-10-batches-py",
        ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    ),
    "cifar100": Official(
        "CIFAR100",
        ("cifar-100-python.tar.gz",),
        "cifar-100-python",
    ),
    "mnist": Official("MNIST", _IDX, "MNIST/raw", tuple("0123456789")),
    "fashion-mnist": Official(
        "FashionMNIST",
        _IDX,
        "FashionMNIST/raw",
        ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
}


@dataclass(frozen=True)
class OfficialSource:
    """The set `name` from `path` (its archive, or a folder with its files), or from the network without one."""

    name: str
    path: Path | None
    downloads: Path

    @property
    def where(self) -> str:
        return str(self.path.absolute()) if self.path else "the network"

    @property
    def at_hand(self) -> bool:
        return self.path is not None

    def digest(self) -> str:
        """sha256 of the archive, or over the names and contents of the files, hex."""
        files = self._files()
        return file_digest(files[0]) if len(files) == 1 else files_digest(files[0].parent, files)

    def read(self, scratch: Path) -> ImageSet:
        """Unpacks below `scratch` and reads. Raises DataError for files that are not the official ones."""
        files = self._files()
        try:
            if files[0].suffix == ".gz" and len(files) > 1:
                self._check_md5s(files)  # torchvision checks CIFAR's files itself, but not these
            _unpack(files, scratch, OFFICIAL[self.name].folder)
            reader = self._reader()
            train, test = (reader(scratch, train=is_train) for is_train in (True, False))
        except (RuntimeError, ValueError, EOFError, tarfile.TarError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(
                f"{files[0].parent if len(files) > 1 else files[0]} is not the official {self.name} ({error})",
                f"The published {' '.join(OFFICIAL[self.name].files)} are read, known by their md5",
                "Bring them anew, or give your own images as --source FILE.npz",
            ) from None
        names = OFFICIAL[self.name].class_names or tuple(train.classes)
        return ImageSet(_labelled(train, names, self.name), _labelled(test, names, self.name), names)

    def _files(self) -> list[Path]:
        """The published files, or CIFAR's unpacked ones; downloaded first if no path was given."""
        official = OFFICIAL[self.name]
        if self.path is None:
            return self._download()
        if self.path.is_file() and len(official.files) == 1:
            return [self.path]
        for folder in (self.path, self.path / "raw", self.path / official.folder):
            files = [folder / name for name in official.files]
            if all(file.is_file() for file in files):
                return files
        for folder in (self.path, self.path / official.folder):
            if folder.name == official.folder and folder.is_dir():
                return sorted(file for file in folder.iterdir() if file.is_file())
        raise DataError(
            f"{self.path} does not hold {self.name}",
            f"It must be {' and '.join(official.files)}, a folder with that, {official.folder}/, or an .npz file",
            "Correct --source",
        )

    def _download(self) -> list[Path]:
        reader, official = self._reader(), OFFICIAL[self.name]
        if len(official.files) == 1:
            published = {official.files[0]: ([reader.url], reader.tgz_md5)}
        else:
            published = {name: ([m + name for m in reader.mirrors], md5) for name, md5 in reader.resources}
        files = [self.downloads / self.name / name for name in published]
        try:
            for file, (urls, md5) in zip(files, published.values(), strict=True):
                fetch(urls, file, md5)
        except DataError as error:
            kind = "file" if len(files) == 1 else "folder"
            copy = f"Or bring {' '.join(published)} from elsewhere, and give the {kind} as --source"
            raise DataError(error.found, error.rule, f"{error.remedy}. {copy}") from None
        return files

    def _check_md5s(self, files: list[Path]) -> None:
        for file, (_, md5) in zip(files, self._reader().resources, strict=True):
            if (found := file_digest(file, "md5")) != md5:
                raise ValueError(f"{file.name} has the md5 {found} instead of {md5}")

    def _reader(self) -> Any:
        from torchvision import datasets

        return getattr(datasets, OFFICIAL[self.name].reader)


def _labelled(dataset: Any, class_names: tuple[str, ...], where: str) -> LabelledImages:
    return checked(np.asarray(dataset.data), np.asarray(dataset.targets), len(class_names), where)


def _unpack(files: list[Path], scratch: Path, folder: str) -> None:
    """Lays the files out below `scratch` as torchvision expects them."""
    target = scratch / folder
    if len(files) == 1:
        target.mkdir(parents=True)
        with tarfile.open(files[0]) as archive:
            # File by file, by its last name: no path in an archive leads elsewhere. (extractall's filter for that
            # is not in the Python 3.11.2 of Debian 12.)
            for member in (m for m in archive if m.isfile()):
                with archive.extractfile(member) as packed, (target / Path(member.name).name).open("wb") as plain:  # type: ignore[union-attr]
                    shutil.copyfileobj(packed, plain)
    elif files[0].suffix == ".gz":
        target.mkdir(parents=True)
        for file in files:
            with gzip.open(file) as packed, (target / file.stem).open("wb") as plain:
                shutil.copyfileobj(packed, plain)
    else:
        target.symlink_to(files[0].parent.absolute(), target_is_directory=True)
