"""Files that are there whole or not at all: written aside, flushed to the disk, renamed."""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ASIDE = ".aside-"  # prefix of what is being written; left behind only by a killed process


def write_atomically(path: Path, content: str | bytes) -> None:
    """`path` holds the old content or the new, whatever happens; the new is on the disk on return."""
    aside = path.with_name(f"{ASIDE}{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        with open(aside, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """`value` as readable JSON, atomically; CJK stays readable."""
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def folder_aside(target: Path) -> Iterator[Path]:
    """A new folder beside `target` to fill; without an error it is flushed and takes `target`'s name.

    An existing `target` is replaced. After an error, or a Ctrl-C, nothing is left of the new folder.
    """
    aside = target.with_name(f"{ASIDE}{uuid.uuid4().hex[:8]}-{target.name}")
    aside.mkdir(parents=True)
    try:
        yield aside
        for file in aside.iterdir():
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
        sync_folder(aside)
        _take_name(aside, target)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    sync_folder(target.parent)


def _take_name(aside: Path, target: Path) -> None:
    """Renames `aside` to `target`. An old `target` is moved away first and comes back after an error."""
    if not target.exists():
        os.rename(aside, target)
        return
    old = target.with_name(f"{ASIDE}{uuid.uuid4().hex[:8]}-old-{target.name}")
    os.rename(target, old)
    try:
        os.rename(aside, target)
    except BaseException:
        os.rename(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def sweep_aside(folder: Path) -> None:
    """Removes what killed processes left half-written in `folder`."""
    for path in folder.glob(f"{ASIDE}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def sync_folder(folder: Path) -> None:
    """Makes renames in `folder` outlive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(path: Path) -> str:
    """The file's sha256 in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
