"""Digests of files: what tells whether a source is still the one that was prepared."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from distcifar.errors import DataError


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Digest of a file's content, hex. Raises DataError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, algorithm).hexdigest()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}",
            "The source of the images must be readable",
            "Correct the path, or the permissions of the file",
        ) from None


def files_digest(folder: Path, files: Sequence[Path]) -> str:
    """sha256, hex, over the paths (relative to `folder`, sorted) and the contents of `files`."""
    named = sorted((path.relative_to(folder).as_posix(), path) for path in files)
    total = hashlib.sha256()
    with ThreadPoolExecutor(max_workers=8) as pool:
        contents = pool.map(file_digest, (path for _, path in named))
        for (name, _), content in zip(named, contents, strict=True):
            total.update(f"{name}\0{content}\n".encode("utf-8", "surrogateescape"))
    return total.hexdigest()
