"""A directory of images, a folder per class.

Either DIR/train/CLASS/* with DIR/test/CLASS/* (or DIR/val), or DIR/CLASS/* alone. Names may be in any script.
An image that cannot be decoded is left out and told (quarantine.json); it is never replaced by another.
"""

import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from distcifar.data.digests import files_digest
from distcifar.data.images import ImageSet, LabelledImages, fit_square, pixel_file
from distcifar.data.progress import progress
from distcifar.data.split import with_drawn_test
from distcifar.data.staging import require_space
from distcifar.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_TEST_FOLDERS = ("test", "val")  # the first that is there
_GREY, _COLOUR = ("1", "L", "LA"), ("RGB", "RGBA", "P", "PA", "CMYK", "YCbCr", "LAB", "HSV", "RGBX", "La", "RGBa")

Out = TypeVar("Out")


@dataclass(frozen=True)
class FolderSource:
    """The images below `path`; `size` as in DataConfig, `max_broken` a share of all images."""

    path: Path
    size: int = 0
    max_broken: float = 0.01

    @property
    def where(self) -> str:
        return str(self.path.absolute())

    @property
    def at_hand(self) -> bool:
        return self.path.is_dir()

    def digest(self) -> str:
        """sha256 over the sorted relative paths and the contents of all images, hex."""
        files = [file.path for split in _splits(self.path)[:2] for file in split]
        return files_digest(self.path, files)

    def read(self, scratch: Path) -> ImageSet:
        """Decodes all images into a file in `scratch`. Raises DataError for mixed sizes without `size`, and for too
        many broken ones."""
        train, test, class_names, notes = _splits(self.path)
        files = [*train, *test]
        with progress("Looking at images", len(files)) as advance:
            heads, broken = _each(_head, files, advance)
        self._check_broken(broken, len(files))
        channels = 1 if all(head.grey for head in heads.values()) else 3
        shape = (*self._common_size(list(heads.values())), channels)
        good = [file for file in files if file in heads]
        require_space(scratch, len(good) * math.prod(shape))
        images = pixel_file(scratch / "pixels", (len(good), *shape))
        places = {file: index for index, file in enumerate(good)}

        def decode(file: "_File") -> None:
            images[places[file]] = _pixels(file.path, self.size, channels).reshape(shape)

        with progress("Decoding images", len(good)) as advance:
            decoded, undecodable = _each(decode, good, advance)
        broken |= undecodable
        self._check_broken(broken, len(files))
        parts = [[file for file in split if file in decoded] for split in (train, test)]
        splits = [_labelled(images, places, part) for part in parts]
        image_set = (
            ImageSet(splits[0], splits[1], class_names)
            if test
            else with_drawn_test(splits[0], class_names, f"{self.path} has no test folder")
        )
        quarantine = tuple((_relative(file, self.path), reason) for file, reason in sorted(broken.items()))
        return replace(image_set, notes=(*notes, *image_set.notes), broken=quarantine)

    def _check_broken(self, broken: dict["_File", str], total: int) -> None:
        if len(broken) > self.max_broken * total or len(broken) == total:
            first = "; ".join(f"{_relative(f, self.path)}: {why}" for f, why in sorted(broken.items())[:5])
            raise DataError(
                f"{len(broken)} of {total} images in {self.path} cannot be decoded ({first})",
                f"At most {self.max_broken:.1%} may be left out",
                f"Replace or delete them, or allow more: --max-broken {len(broken) / total + 0.005:.2f}",
            )

    def _common_size(self, heads: list["_Head"]) -> tuple[int, int]:
        """(height, width) of all images. Raises DataError if they differ and no size was asked for."""
        if self.size:
            return self.size, self.size
        sizes = Counter((head.width, head.height) for head in heads)
        if len(sizes) == 1:
            ((width, height),) = sizes
            return height, width
        told = ", ".join(f"{w} x {h} ({count})" for (w, h), count in sizes.most_common(5))
        least = min(min(size) for size in sizes)
        raise DataError(
            f"The images in {self.path} have {len(sizes)} sizes: {told}{', ...' if len(sizes) > 5 else ''}",
            "All images of a set have one size",
            f"Add --size N, for example --size {least}: shorter side to N pixels, then the central square",
        )


@dataclass(frozen=True, order=True)
class _File:
    path: Path
    label: int


@dataclass(frozen=True)
class _Head:
    """What an image file says before its pixels are decoded; width and height as it is to be looked at."""

    width: int
    height: int
    grey: bool


def _splits(folder: Path) -> tuple[list[_File], list[_File], tuple[str, ...], tuple[str, ...]]:
    """(training files, test files, class names, notes) of a directory; test is empty if there is no folder."""
    if not (folder / "train").is_dir():
        class_names = _class_names(folder)
        train, notes = _class_files(folder, class_names)
        return train, [], class_names, notes
    class_names = _class_names(folder / "train")
    train, notes = _class_files(folder / "train", class_names)
    tests = [folder / name for name in _TEST_FOLDERS if (folder / name).is_dir()]
    if not tests:
        return train, [], class_names, notes
    if (found := _class_names(tests[0])) != class_names:
        differing = sorted(set(found) ^ set(class_names))
        raise DataError(
            f"{tests[0]} and {folder / 'train'} differ in the class folders {', '.join(differing[:10])}",
            "Training and test images have the same classes",
            "Add the missing folders, or rename them",
        )
    if tests[0].name == "val":
        notes = (*notes, f"{folder} has no test folder: its val folder is the test split")
    test, more = _class_files(tests[0], class_names)
    return train, test, class_names, (*notes, *more)


def _class_names(folder: Path) -> tuple[str, ...]:
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != ".")
    except OSError as error:
        raise DataError(
            f"{folder} cannot be read: {error.strerror}", "It must be a directory", "Correct the path"
        ) from None
    if unreadable := [name for name in names if not name.isprintable()]:
        raise DataError(
            f"{folder} has the class folder {unreadable[0]!r}",
            "Class names are printable UTF-8, since they are shown and stored",
            "Rename it",
        )
    if len(names) < 2:
        raise DataError(
            f"{folder} has {len(names)} class folders",
            "Images lie in DIR/CLASS/ or DIR/train/CLASS/ and DIR/test/CLASS/, with two classes or more",
            "Sort the images into a folder per class",
        )
    return tuple(names)


def _class_files(folder: Path, class_names: Sequence[str]) -> tuple[list[_File], tuple[str, ...]]:
    """The image files of each class, in the order of class and path, and a note on files that are none."""
    files, others = [], 0
    for label, name in enumerate(class_names):
        paths = [path for path in sorted((folder / name).rglob("*")) if path.is_file() and path.name[0] != "."]
        images = [path for path in paths if path.suffix.lower() in SUFFIXES]
        if not images:
            raise DataError(
                f"{folder / name} holds no image",
                f"Each class has images ({' '.join(SUFFIXES)})",
                "Add some, or remove the folder",
            )
        others += len(paths) - len(images)
        files += [_File(path, label) for path in images]
    notes = (f"{others} files in {folder} are no images and are left out",) if others else ()
    return files, notes


def _each(
    act: Callable[[_File], Out], files: Iterable[_File], advance: Callable[[int], None]
) -> tuple[dict[_File, Out], dict[_File, str]]:
    """`act` on each file in threads (PIL decodes beside Python): (results, reasons of those that failed)."""

    def attempt(file: _File) -> tuple[_File, Any, str]:
        try:
            return file, act(file), ""
        except Exception as error:  # decoders meet damaged bytes with any exception there is
            return file, None, f"{type(error).__name__}: {error}".replace(repr(str(file.path)), "it")
        finally:
            advance(1)

    with ThreadPoolExecutor() as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata and transparency; what counts raises
        done = list(pool.map(attempt, files))
    good = {file: result for file, result, reason in done if not reason}
    return good, {file: reason for file, _, reason in done if reason}


def _head(file: _File) -> _Head:
    from PIL import Image

    with Image.open(file.path) as image:
        if image.mode not in _GREY + _COLOUR:
            raise ValueError(f"its mode is {image.mode}, not 8 bits per channel")
        width, height = image.size
        sideways = image.getexif().get(0x0112, 1) >= 5  # EXIF orientations 5 to 8 lie on their side
        return _Head(*((height, width) if sideways else (width, height)), grey=image.mode in _GREY)


def _pixels(path: Path, size: int, channels: int) -> Any:
    """The image upright, at size x size (0: as it is): uint8 [H, W] or [H, W, 3]. Transparency is dropped."""
    from PIL import Image, ImageOps

    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode in ("P", "PA"):
            upright = upright.convert("RGBA")  # a palette's transparent entries keep their colour so
        plain = upright.convert("L" if channels == 1 else "RGB")
        return np.asarray(fit_square(plain, size) if size else plain)


def _labelled(images: Any, places: dict[_File, int], files: list[_File]) -> LabelledImages:
    labels = np.array([file.label for file in files], np.int64)
    return LabelledImages(images, labels, np.array([places[file] for file in files], np.int64))


def _relative(file: _File, folder: Path) -> str:
    """Its path within `folder`, printable whatever bytes the name has."""
    name = os.fsencode(file.path.relative_to(folder).as_posix())
    return name.decode("utf-8", "backslashreplace")
