"""Facts of disks and folders: space, and how small flushed writes, renames and locks behave there."""

import fcntl
import os
import shutil
import statistics
import tempfile
import time
import uuid
from pathlib import Path

from distcifar.doctor.findings import Facts
from distcifar.errors import StorageError
from distcifar.files import ASIDE
from distcifar.store import Store

WRITES, WRITE_SECONDS = 20, 2.0  # small writes that are timed, and the time after which it is enough
STORE_TRIES = 2  # of each request at a URL
ASIDE_SECONDS = 86400.0  # for which nothing that is still being written stands still


def disk_facts(path: Path) -> Facts:
    """Bytes and inodes of the disk of `path`, or of where it would be; inodes are 0 where they are not counted."""
    place = existing(path)
    usage, system = shutil.disk_usage(place), os.statvfs(place)
    return {
        "path": str(path),
        "total_bytes": usage.total,
        "free_bytes": usage.free,
        "inodes": system.f_files,
        "free_inodes": system.f_favail,
    }


def shm_facts(path: Path) -> Facts:
    """disk_facts of the folder of shared memory; {"path", "missing"} where there is none."""
    return disk_facts(path) if path.is_dir() else {"path": str(path), "missing": True}


def folder_facts(path: Path) -> Facts:
    """disk_facts and, tried in a file that is removed again: seconds of a flushed write, rename, lock; {"failure"}."""
    place = existing(path)
    facts = disk_facts(path) | {"aside": [str(left) for left in left_aside(path, time.time())]}
    try:
        with tempfile.TemporaryDirectory(prefix=f"{ASIDE}doctor-", dir=place) as scratch:
            return facts | _tried(Path(scratch))
    except OSError as reason:
        return facts | {"failure": reason.strerror or str(reason)}


def store_facts(url: str, *, write: bool) -> Facts:
    """{"place", "seconds"} of writing, reading and removing an object at a URL, or of a look for one; {"failure"}."""
    store, name = Store(url, tries=STORE_TRIES), f"{ASIDE}doctor-{uuid.uuid4().hex[:8]}"
    begun = time.perf_counter()
    try:
        if write:
            store.write(name, b"doctor")
        store.read(name)
        if write:
            store.delete(name)
    except StorageError as reason:
        return {"place": store.place, "failure": reason.found}
    return {"place": store.place, "seconds": time.perf_counter() - begun}


def existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that is there."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def left_aside(folder: Path, now: float) -> list[Path]:
    """What killed processes have left half-written in `folder` a day ago or earlier."""
    return sorted(path for path in folder.glob(f"{ASIDE}*") if now - path.stat().st_mtime > ASIDE_SECONDS)


def _tried(folder: Path) -> Facts:
    seconds: list[float] = []
    with open(folder / "new", "wb") as file:
        while len(seconds) < WRITES and sum(seconds) < WRITE_SECONDS:
            begun = time.perf_counter()
            file.write(os.urandom(4096))
            file.flush()
            os.fsync(file.fileno())
            seconds.append(time.perf_counter() - begun)
    (folder / "old").write_text("old")
    os.replace(folder / "new", folder / "old")
    return {
        "write_seconds": statistics.median(seconds),
        "slowest_seconds": max(seconds),
        "renames": (folder / "old").stat().st_size == 4096 * len(seconds),
        "locks": _locks(folder / "lock"),
    }


def _locks(path: Path) -> bool:
    """Whether a second holder of a lock is refused."""
    with open(path, "w") as first, open(path, "w") as second:
        try:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False  # no locks at all
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False
