"""What lies at a URL, made the content of a run directory here: to go on with it, to follow it, or to read it."""

import json
import shutil
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from distcifar.cluster.stored.layout import MANIFEST, NOTES, RUN, is_plain, is_table, plain_files, sealed_folders
from distcifar.cluster.stored.mirror import EVENTS, Mirror, signature
from distcifar.errors import CheckpointError
from distcifar.files import folder_aside, write_atomically
from distcifar.sealed import verify
from distcifar.store import Store, Stored
from distcifar.tracking.rows import NEWEST, first_row_in, part, part_numbers

READ_BYTES = 64 << 20  # that one request asks for
SHARED = ("microbatch.json",)  # what a rank that fails leaves for all


def pull_to_go_on(mirror: Mirror) -> bool:
    """Makes the folder exactly like the store, without metrics.csv, which is made anew; whether a run is there.

    What ranks have noted before they failed is added to the events.
    """
    listed = mirror.look()
    if RUN not in listed:
        return False
    wanted = [stored for stored in listed.values() if is_plain(stored.name) and not is_table(stored.name)]
    mirror.folder.mkdir(parents=True, exist_ok=True)
    for path in plain_files(mirror.folder).values():
        if path.name not in {stored.name for stored in wanted}:
            path.unlink()
    for stored in wanted:
        _pull_file(mirror, stored)
    _pull_sealed(mirror, listed)
    _drop_renamed(mirror.folder)
    _add_notes(mirror)
    return True


class Follower:
    """Keeps a copy like a run directory at a URL that another process pushes to."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self._seen: dict[str, Stored] = {}  # objects as they were when they were pulled
        self._noted: set[bytes] = set()  # events that are there, among the workers' or as notes

    def pull(self, *, whole: bool = False) -> None:
        """Brings what has changed. whole: checkpoints, model, tables and notes as well, in the end.

        What was never there stays: W&B's client and this process have files of their own. Events of this process are
        left there as notes: it may be killed before it stores its own.
        """
        mirror = self._mirror
        listed = mirror.look()
        for stored in listed.values():
            if is_plain(stored.name) and (whole or not is_table(stored.name)) and self._seen.get(stored.name) != stored:
                if stored.name == EVENTS:
                    content = mirror.store.read(EVENTS) or b""
                    _add_lines(mirror.folder / EVENTS, content)  # the driver has its own too
                    self._noted.update(_lines(content))
                else:
                    _pull_file(mirror, stored)
                self._seen[stored.name] = stored
        for name in [name for name in self._seen if name not in listed]:
            (mirror.folder / name).unlink(missing_ok=True)
            del self._seen[name]
        if whole:
            _pull_sealed(mirror, listed)
            _add_notes(mirror)
        else:
            leave_notes(mirror.folder, mirror.store, self._noted)


def hand_over(folder: Path, store: Store) -> None:
    """Puts there what a rank that fails leaves in its own copy, for all that go on."""
    for name in SHARED:
        with suppress(FileNotFoundError):
            store.write(name, folder / name)
    leave_notes(folder, store)


def leave_notes(folder: Path, store: Store, known: set[bytes] | None = None) -> None:
    """Puts there the events that only this copy has: whoever goes on adds them to its own.

    known: those that are there, to which these are added; by default they are read.
    """
    known = set(_lines(store.read(EVENTS) or b"")) if known is None else known
    lines = [line for line in _lines(_content(folder / EVENTS)) if line not in known]
    if lines:
        store.write(f"{NOTES}{uuid.uuid4().hex}.jsonl", _joined(lines))
        known.update(lines)


def bring(path: Path, content: bytes) -> None:
    """`path` has `content`. A file that has only grown stays the same file: others follow it."""
    old = path.read_bytes() if path.exists() and path.suffix == ".jsonl" else None
    if old is not None and content.startswith(old):
        with open(path, "ab") as file:
            file.write(content[len(old) :])
    else:
        write_atomically(path, content)


def _pull_file(mirror: Mirror, stored: Stored) -> None:
    path, content = mirror.folder / stored.name, mirror.store.read(stored.name)
    if content is not None:  # else it was removed just now
        bring(path, content)
        mirror.alike[stored.name] = signature(path)


def _pull_sealed(mirror: Mirror, listed: dict[str, Stored]) -> None:
    for name, (place, manifest) in mirror.sealed.items():
        if not _is_here(mirror.folder / name, manifest):
            with folder_aside(mirror.folder / name) as aside:
                for stored in [each for each in listed.values() if each.name.rpartition("/")[0] == place]:
                    _fetch(mirror.store, stored, aside / stored.name.rpartition("/")[2])
    for name in sealed_folders(mirror.folder):
        if name not in mirror.sealed:
            shutil.rmtree(mirror.folder / name)


def _is_here(folder: Path, manifest: bytes) -> bool:
    """Whether the sealed folder is here undamaged."""
    try:
        if (folder / MANIFEST).read_bytes() != manifest:
            return False
        verify(folder, tuple(json.loads(manifest)["files"]))
    except (OSError, CheckpointError, ValueError, KeyError, TypeError):
        return False
    return True


def _fetch(store: Store, stored: Stored, path: Path) -> None:
    with open(path, "wb") as file:
        for offset in range(0, stored.size, READ_BYTES):
            file.write(store.read_at(stored.name, offset, READ_BYTES))


def _drop_renamed(folder: Path) -> None:
    """Removes metrics.jsonl where it is an older state of what is a part by now: the store had both for a moment."""
    numbers = part_numbers(folder)
    newest, last = first_row_in(folder / NEWEST), first_row_in(part(folder, numbers[-1])) if numbers else None
    if newest is None or last is None:
        return
    if (newest["step"], newest["kind"] == "epoch") <= (last["step"], last["kind"] == "epoch"):
        (folder / NEWEST).unlink()


def _add_notes(mirror: Mirror) -> None:
    mirror.notes = [name for name in mirror.there or () if name.startswith(NOTES)]
    for name in mirror.notes:
        _add_lines(mirror.folder / EVENTS, mirror.store.read(name) or b"")


def _add_lines(path: Path, content: bytes) -> None:
    """Appends the whole lines of `content` that are not there: others follow the file, and write into it too."""
    old = _content(path)
    known = set(_lines(old))
    torn = old[-1:] not in (b"", b"\n")  # by a disk that was full
    with open(path, "ab") as file:
        file.write(b"\n" * torn + _joined(line for line in _lines(content) if line not in known))


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def _lines(content: bytes) -> list[bytes]:
    """The whole lines, without their ends."""
    return content.split(b"\n")[:-1]


def _joined(lines: Iterable[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)
