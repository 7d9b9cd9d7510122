"""A run directory and its like at a URL: what changed here is pushed, what lies there is pulled.

Whatever moment the pushing process dies at, what is there can be gone on from: rows before the checkpoints that they
belong to, a checkpoint's manifest after its files, nothing removed before what replaces it has arrived (layout.py).
"""

import os
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from distcifar.cluster.stored.layout import (
    CHECKPOINTS,
    MANIFEST,
    MODEL,
    NOTES,
    RESULT,
    RUN,
    WRITER,
    free_place,
    is_plain,
    is_table,
    leftovers,
    plain_files,
    sealed_folders,
    whole_folders,
)
from distcifar.cluster.stored.lease import taken_over
from distcifar.store import Store, Stored
from distcifar.tracking.rows import NEWEST, last_row

EVENTS = "events.jsonl"
Signature = tuple[int, int, int]


class Mirror:
    """The run directory `folder` and the place `store`. Raises StorageError where the store does not answer.

    token: of the one process that may push; whoever takes the run over writes another one into the store.
    """

    def __init__(self, folder: Path, store: Store, token: str) -> None:
        self.folder, self.store, self.token = folder, store, token
        self.there: set[str] | None = None  # the names of all objects, once they were looked at
        self.alike: dict[str, Signature | None] = {}  # files that are there, as they were here when they were alike
        self.sealed: dict[str, tuple[str, bytes]] = {}  # whole sealed folders: their places and manifests
        self.notes: list[str] = []  # objects whose lines stand in the events here
        self._doubtful = False  # whether there may be more, or less, than is known

    def writer(self) -> str:
        """The token of the process that may push now; empty where there was none."""
        return (self.store.read(WRITER) or b"").decode()

    def take(self) -> None:
        """From now on this one pushes and no other."""
        self.store.write(WRITER, self.token.encode())

    def push(self, *, tables: bool = True) -> bool:
        """Makes the store like the folder; whether there was anything to be done. tables: also metrics.csv.

        Raises RunError where another process has taken the run over.
        """
        if self.there is None or self._doubtful:
            self.look()
        with ExitStack() as stack:
            changes = self._changes(stack, tables=tables)
            if not any((changes.files, changes.gone, changes.new, changes.left)):
                return False
            self._require_mine()
            self._doubtful = True  # what fails from here on may have arrived nevertheless
            if RESULT in self.alike and (RESULT in changes.gone or MODEL in changes.new):
                self._remove(RESULT)
            if self._is_cut(changes):  # the checkpoints that have lost their rows go before these
                self._put_sealed(changes)
                self._put_files(changes)
            else:
                self._put_files(changes)
                self._put_sealed(changes)
            for name in (RUN, RESULT):
                if name in changes.files:
                    self._require_mine()
                    self._write(name, changes.files[name])
        for name in sorted(changes.gone - {RESULT}, reverse=True):
            self._remove(name)
        self._doubtful = False
        return True

    def clear(self) -> None:
        """Removes the run that is there."""
        objects = self.look()
        self._require_mine()
        self.sealed = {}
        first = [name for name in (RUN, RESULT) if name in objects]
        for name in first + [name for name in sorted(objects, reverse=True) if is_plain(name) and name not in first]:
            self._remove(name)
        self._remove_places(leftovers(objects, ()))
        self.store.delete_below(NOTES.rstrip("/"))

    def look(self) -> dict[str, Stored]:
        """What is there now, and the manifests of what is whole."""
        listed = self.store.listing()
        if self.there is None:  # later ones are of others, and not for this one to remove
            self.alike = {name: None for name in listed if is_plain(name)}
        self.there = set(listed)
        found = {}
        for name, place in whole_folders(self.there).items():
            known = self.sealed.get(name)
            manifest = known[1] if known and known[0] == place else self.store.read(f"{place}/{MANIFEST}")
            if manifest is not None:
                found[name] = (place, manifest)
        self.sealed = found
        return listed

    def _require_mine(self) -> None:
        if self.writer() != self.token:
            raise taken_over(self.folder.name)

    def _changes(self, stack: ExitStack, *, tables: bool) -> "_Changes":
        """What differs here; its files stay open as long as `stack`."""
        result = (self.folder / RESULT).exists()  # asked before what it depends on is listed
        sealed = sealed_folders(self.folder)  # listed before the rows that belong to them are read
        new = [name for name in sealed if self._is_new(name)]
        if MODEL in new and RESULT in self.alike:
            self.alike[RESULT] = None  # it is about that model: removed before it and written after it
        names, files = self._opened(stack, tables=tables)
        if RUN not in names:  # a folder that has vanished is not an empty run
            return _Changes({}, set(), [], [], left=False, last_step=0)
        if not result:
            files.pop(RESULT, None)
        gone = {name for name in self.alike if name not in names and (tables or not is_table(name))}
        left = any(name not in sealed for name in self.sealed)
        row = last_row(self.folder)
        return _Changes(files, gone, new, sealed, left, row["step"] if row else 0)

    def _is_cut(self, changes: "_Changes") -> bool:
        """Whether the rows to be pushed end before a checkpoint that is there: the run has gone back."""
        if NEWEST not in changes.files:
            return False
        steps = [int(name.removeprefix(f"{CHECKPOINTS}/step-")) for name in self.sealed if name != MODEL]
        return changes.last_step < max(steps, default=0)

    def _put_files(self, changes: "_Changes") -> None:
        for name in sorted(changes.files.keys() - {RUN, RESULT}):
            self._write(name, changes.files[name])
        if EVENTS in changes.files:
            self._remove_notes()

    def _put_sealed(self, changes: "_Changes") -> None:
        for name in changes.new:
            self._put(name)
        if changes.new or changes.left:
            self._remove_left(changes.sealed)

    def _opened(self, stack: ExitStack, *, tables: bool) -> tuple[set[str], dict[str, BinaryIO]]:
        """All names, and those of changed files, open: as they were at one moment, also if names change meanwhile."""
        while True:
            files = {n: p for n, p in plain_files(self.folder).items() if tables or not is_table(n)}
            with suppress(FileNotFoundError), ExitStack() as tried:
                before = {name: path.stat().st_ino for name, path in files.items()}
                changed: dict[str, BinaryIO] = {
                    name: tried.enter_context(open(path, "rb"))
                    for name, path in files.items()
                    if self.alike.get(name) != signature(path)
                }
                now = {n: p.stat().st_ino for n, p in plain_files(self.folder).items() if tables or not is_table(n)}
                if before == now:
                    stack.push(tried.pop_all())
                    return set(files), changed

    def _write(self, name: str, file: BinaryIO) -> None:
        here = signature(file.fileno())  # before it is read: what is added later is pushed later
        self.store.write(name, file)
        self.alike[name] = here

    def _remove(self, name: str) -> None:
        self.store.delete(name)
        self.alike.pop(name, None)

    def _remove_notes(self) -> None:
        while self.notes:
            self.store.delete(self.notes.pop())

    def _is_new(self, name: str) -> bool:
        with suppress(FileNotFoundError):
            return name not in self.sealed or self.sealed[name][1] != (self.folder / name / MANIFEST).read_bytes()
        return False

    def _put(self, name: str) -> None:
        """A sealed folder into a place of its own. One that is replaced or removed meanwhile arrives nevertheless."""
        assert self.there is not None
        folder = self.folder / name
        with ExitStack() as stack:
            try:
                manifest = (folder / MANIFEST).read_bytes()
                others = [path for path in sorted(folder.iterdir()) if path.name != MANIFEST]
                files = {path.name: stack.enter_context(open(path, "rb")) for path in others}
                if (folder / MANIFEST).read_bytes() != manifest:
                    return
            except FileNotFoundError:
                return
            if name == MODEL and name in self.sealed:  # its name is known outside; only a result makes it valid
                self.store.delete(f"{MODEL}/{MANIFEST}")
            place = MODEL if name == MODEL else free_place(name, self.there)
            for file_name, file in files.items():
                self.store.write(f"{place}/{file_name}", file)
            self._require_mine()
            self.store.write(f"{place}/{MANIFEST}", manifest)
        self.there |= {f"{place}/{file_name}" for file_name in (*files, MANIFEST)}
        self.sealed[name] = (place, manifest)

    def _remove_left(self, sealed: list[str]) -> None:
        """Removes the sealed folders that are no longer here; not before there is one that stays."""
        self.look()  # a process that died, or was taken over, may have left some
        staying = [place for name, (place, _) in self.sealed.items() if name in sealed]
        if any(place.startswith(CHECKPOINTS) for place in staying):
            self._remove_places(leftovers(self.there or (), staying))

    def _remove_places(self, places: list[str]) -> None:
        for place in reversed(places):
            self.store.delete(f"{place}/{MANIFEST}")
            self.store.delete_below(place)
        self.there = {name for name in self.there or () if name.rpartition("/")[0] not in places}


@dataclass(frozen=True)
class _Changes:
    """What the folder has that the store has not, and the other way round."""

    files: dict[str, BinaryIO]  # open
    gone: set[str]  # files
    new: list[str]  # sealed folders
    sealed: list[str]  # all of them here
    left: bool  # whether there are some that are no longer here
    last_step: int  # of the rows here


def signature(file: Path | int) -> Signature:
    """What changes when a file, or what its descriptor is about, is written or replaced."""
    found = os.stat(file)
    return found.st_size, found.st_mtime_ns, found.st_ino
