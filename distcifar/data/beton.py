"""FFCV files: written by FFCV, sealed with digests, verified, and read whole without FFCV.

FFCV trusts every pointer and length of a file: a damaged one ends the process or delivers other pixels. So no file
is opened for training before `verify` has passed it. Nothing here but `write_beton` imports ffcv, which costs 5 s.

File layout (ffcv 1.0.2: types.py, writer.py, memory_allocator.py), little-endian: header, field descriptors,
metadata of each sample (pointer to its pixels, label), pages with the pixels, allocation table.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distcifar.data.images import class_counts
from distcifar.data.manifest import (
    BLOCK_BYTES,
    Manifest,
    read_manifest,
    repair_command,
    sidecar_of,
    to_text,
)
from distcifar.data.progress import progress
from distcifar.errors import DataError
from distcifar.files import write_atomically

_HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ]
)
_FIELD = np.dtype([("type_id", "u1"), ("name", "S16"), ("arguments", "u1", 1024)])
_ARRAY = np.dtype([("shape", "<u8", 32), ("type_length", "<u8")])  # an NDArrayField's arguments begin so
_SAMPLE = np.dtype([("pointer", "<u8"), ("label", "<i8")])
_ALLOCATION_BYTES = 24
_VERSION, _INT, _NDARRAY = 2, 1, 4
_MIN_PAGE = 1 << 21  # FFCV's least
JPEG_QUALITY = 95  # of 100, colour at half the resolution as OpenCV has it; another one is another FORMAT_VERSION
_JPEG_BYTES = 1024  # a JPEG's own tables, and what FFCV notes of it


def page_bytes(image_bytes: int) -> int:
    """FFCV's page size for images of that many bytes: a power of two that holds at least 8 of them.

    An image does not cross pages, so a page ends in a gap: 0.1 % for CIFAR-10, 1/8 at worst.
    """
    return max(_MIN_PAGE, 1 << (8 * image_bytes - 1).bit_length())


def file_bytes(num_samples: int, image_bytes: int, storage: str = "raw") -> int:
    """An upper bound of the size of a beton, for the check of free space; of JPEGs that of noise."""
    image_bytes += _JPEG_BYTES if storage == "jpeg" else 0
    page = page_bytes(image_bytes)
    pages = -(-num_samples // (page // image_bytes))
    start = _HEADER.itemsize + 2 * _FIELD.itemsize + num_samples * _SAMPLE.itemsize
    return -(-start // page) * page + pages * page + num_samples * _ALLOCATION_BYTES


def write_beton(
    path: Path,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    storage: str = "raw",
    *,
    rows: NDArray[np.int64] | None = None,
) -> None:
    """Writes images (uint8 [M, H, W, C]) `rows` (int64 [N]; None: all) with labels (int64 [N]) as the FFCV file `path`.

    It is flushed to disk. storage: raw keeps the pixels, jpeg encodes them (C is 3). The same arrays give the same
    bytes, JPEGs with the same OpenCV. About 30,000 CIFAR images per second, after 5 s for `import ffcv`.
    """
    import torch

    threads = torch.get_num_threads()
    from distcifar.data.ffcv_writer import InProcessWriter

    torch.set_num_threads(threads)  # importing ffcv has set it to 1
    shape = images.shape[1:]
    with progress(f"Writing {path.name}", len(labels)) as advance:
        quality = JPEG_QUALITY if storage == "jpeg" else None
        InProcessWriter(path, shape, page_bytes(math.prod(shape)), quality).write(images, labels, advance, rows)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def seal(path: Path, draft: Manifest) -> Manifest:
    """Writes the sidecar of the beton at `path`, flushed to disk: `draft` with the file's size and digests.

    Returns what it wrote.
    """
    size = path.stat().st_size
    manifest = replace(draft, size_bytes=size, blocks=tuple(_block_digests(path, size)))
    write_atomically(sidecar_of(path), to_text(manifest))
    return manifest


def verify(path: Path, *, repair: str = "") -> Manifest:
    """The manifest of the beton at `path`, after checking every byte of both: 1.6 GB/s per core.

    repair: the command to name in errors; without it, it is told from the folder's sidecars.
    Raises DataError naming the file, the damaged byte range and that command.
    """
    remedy = f"Write it again with `{repair or repair_command(path)}`"
    manifest = read_manifest(path, remedy)
    try:
        size = path.stat().st_size
        digests = list(_block_digests(path, min(size, manifest.size_bytes)))
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror} (bytes 0-{manifest.size_bytes - 1})",
            "Its sidecar tells of a file",
            remedy,
        ) from None
    problem = _damage(manifest, size, digests)
    if manifest.split != path.stem:
        problem = f"bytes 0-{size - 1}: the sidecar beside it describes {manifest.split}.beton"
    if problem:
        rule = "A beton is read only as it was written, beside its own sidecar"
        raise DataError(f"{path} is damaged: {problem}", rule, remedy)
    return manifest


def _damage(manifest: Manifest, size: int, digests: list[str]) -> str:
    """What is wrong with a file of `size` bytes whose blocks have these digests; empty if nothing is."""
    cut = size < manifest.size_bytes
    compared = size // BLOCK_BYTES if cut else len(manifest.blocks)  # the block with the cut is told as missing
    bad = {index for index in range(compared) if digests[index] != manifest.blocks[index]}
    problems = [f"bytes {first}-{last} changed" for first, last in _byte_ranges(bad, size)]
    if cut:
        problems.append(f"bytes {size}-{manifest.size_bytes - 1} are missing")
    elif size > manifest.size_bytes:
        problems.append(f"bytes {manifest.size_bytes}-{size - 1} are too many")
    more = f" and {len(problems) - 3} more ranges" if len(problems) > 3 else ""
    return ", ".join(problems[:3]) + more


def _byte_ranges(blocks: set[int], size: int) -> Iterator[tuple[int, int]]:
    """Block numbers as (first, last) byte positions in a file of `size` bytes, neighbours joined."""
    starts = sorted(block for block in blocks if block - 1 not in blocks)
    ends = sorted(block for block in blocks if block + 1 not in blocks)
    for start, end in zip(starts, ends, strict=True):
        yield start * BLOCK_BYTES, min((end + 1) * BLOCK_BYTES, size) - 1


def _block_digests(path: Path, size: int) -> Iterator[str]:
    """sha256, hex, of each block of the first `size` bytes.

    By pread, not mmap: a file that shrinks meanwhile gives a short block then, and not a SIGBUS.
    """
    with path.open("rb") as file, ThreadPoolExecutor(max_workers=8) as pool:  # hashlib lets other threads run

        def digest(start: int) -> str:
            block = os.pread(file.fileno(), min(BLOCK_BYTES, size - start), start)
            return hashlib.sha256(block).hexdigest()

        yield from pool.map(digest, range(0, size, BLOCK_BYTES))


def read_all(path: Path, manifest: Manifest) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """All images (uint8 [N, H, W, C]) and labels (int64 [N]) of a verified beton of raw pixels; 50 ms for CIFAR-10.

    Raises DataError if the file's own header, pointers or labels contradict the manifest.
    """
    shape = manifest.shape
    image_bytes = math.prod(shape)
    with path.open("rb") as file:
        samples = _read_samples(path, file.fileno(), manifest)
        images = np.empty((len(samples), *shape), np.uint8)
        target = images.reshape(-1).data
        pointers = samples["pointer"].astype(np.int64)
        # images lie back to back within a page: one read per page instead of one per image
        cuts = np.flatnonzero(np.diff(pointers) != image_bytes) + 1
        for first, stop in zip([0, *cuts], [*cuts, len(samples)], strict=True):
            part = target[first * image_bytes : stop * image_bytes]
            if os.preadv(file.fileno(), [part], int(pointers[first])) != len(part):
                raise foreign(path, f"it ends within the pixels of image {first}")
    labels = samples["label"].astype(np.int64)
    require_counted(path, labels, manifest)
    return images, labels


def require_counted(path: Path, labels: NDArray[np.int64], manifest: Manifest) -> None:
    """Raises DataError unless the labels (int64 [N]) read from `path` are those that its sidecar counts."""
    if labels.min() < 0 or class_counts(labels, manifest.num_classes) != manifest.class_counts:
        raise foreign(path, "its labels are not those that the sidecar counts")


def _read_samples(path: Path, fd: int, manifest: Manifest) -> NDArray[np.void]:
    """Pointer and label of each sample ([N] _SAMPLE), after checking that header and fields are ours."""
    start = _HEADER.itemsize + 2 * _FIELD.itemsize
    head = os.pread(fd, start, 0).ljust(start, b"\0")
    header = np.frombuffer(head, _HEADER, 1)[0]
    image, label = np.frombuffer(head, _FIELD, 2, _HEADER.itemsize)
    array = image["arguments"][: _ARRAY.itemsize].view(_ARRAY)[0]
    described = {
        "version": int(header["version"]),
        "fields": int(header["num_fields"]),
        "samples": int(header["num_samples"]),
        "names": [bytes(image["name"]), bytes(label["name"])],
        "types": [int(image["type_id"]), int(label["type_id"])],
        "shape": [int(side) for side in array["shape"] if side],
        "pixel": bytes(image["arguments"][_ARRAY.itemsize :][: array["type_length"]]),
    }
    expected = {
        "version": _VERSION,
        "fields": 2,
        "samples": manifest.num_samples,
        "names": [b"image", b"label"],
        "types": [_NDARRAY, _INT],
        "shape": [*manifest.shape],
        "pixel": json.dumps(np.dtype(np.uint8).descr).encode(),
    }
    for key, value in expected.items():
        if described[key] != value:
            raise foreign(path, f"its header says {key} {described[key]!r} instead of {value!r}")
    raw = os.pread(fd, manifest.num_samples * _SAMPLE.itemsize, start)
    if len(raw) < manifest.num_samples * _SAMPLE.itemsize:
        raise foreign(path, "it ends within its table of samples")
    samples = np.frombuffer(raw, _SAMPLE)
    last = min(manifest.size_bytes, int(header["alloc_table_ptr"])) - math.prod(manifest.shape)
    if int(samples["pointer"].max()) > last:
        raise foreign(path, "a pointer leads behind its pixels")
    return samples


def foreign(path: Path, why: str) -> DataError:
    """The error of a file that is whole and yet not as this program writes them."""
    return DataError(
        f"{path} is not a beton of this program: {why}",
        "It holds an image field (of one shape) and a label field",
        f"Write it again with `{repair_command(path)}`",
    )
