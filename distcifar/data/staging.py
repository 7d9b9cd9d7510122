"""Write a folder all or nothing, one process at a time."""

import errno
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from distcifar.errors import StorageError
from distcifar.files import sync_folder


@contextmanager
def storage_errors(root: Path) -> Iterator[None]:
    """Turns what a file system refuses within the block into a StorageError."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise StorageError(
            f"{error.filename or root} cannot be used: {error.strerror or error}",
            "Prepared data needs a folder with room and write permission",
            f"Free some space on the disk of {root}" if full else "Give another --root, or mend its permissions",
        ) from error


@contextmanager
def exclusive(folder: Path, announce: Callable[[str], None]) -> Iterator[None]:
    """Holds `.<folder>.lock` beside `folder`, making the parent if needed; says so if it must wait.

    The lock is the kernel's: it is free as soon as its holder is dead.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(_beside(folder, "lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        announce(f"Another process is preparing {folder}: waiting for it")
        lock.acquire(poll_interval=0.2)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def staged(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Two empty folders (ready, scratch): `ready` becomes `folder`, replacing it, if the block ends well.

    Whatever else happens, nothing is left of either; what a killed process left goes first. The caller holds
    `exclusive(folder)`, and has flushed its files. Unlike files.folder_aside, this leaves alone what living
    processes write in the same root, and keeps a replaced folder until the new one has its name.
    """
    staging = _beside(folder, "tmp")
    _sweep(folder.parent, staging)
    ready, scratch, replaced = staging / "ready", staging / "scratch", staging / "replaced"
    try:
        ready.mkdir(parents=True)
        scratch.mkdir()
        yield ready, scratch
        sync_folder(ready)
        if folder.exists():
            folder.rename(replaced)
        ready.rename(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def require_space(root: Path, needed: int) -> None:
    """Raises StorageError if the disk of `root` has less than `needed` bytes free."""
    free = shutil.disk_usage(root).free
    if free < needed:
        raise StorageError(
            f"{root} has {free / 1e6:,.0f} MB free",
            f"{needed / 1e6:,.0f} MB are needed",
            "Free some space, or give a --root on another disk",
        )


def _sweep(root: Path, own: Path) -> None:
    """Removes `own` and every other temporary folder in `root` whose writer is dead."""
    shutil.rmtree(own, ignore_errors=True)
    for stale in root.glob(".*.tmp"):
        if stale == own:
            continue
        lock = FileLock(stale.with_suffix(".lock"))
        try:
            with lock.acquire(timeout=0):
                shutil.rmtree(stale, ignore_errors=True)
        except Timeout:  # being written
            continue


def _beside(folder: Path, kind: str) -> Path:
    return folder.with_name(f".{folder.name}.{kind}")
