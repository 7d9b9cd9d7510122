"""The command's end of a run at a URL: its own copy, which it trains in or follows the workers with."""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from distcifar.cluster.job import Announce, Listener
from distcifar.cluster.stopping import StopRequest
from distcifar.cluster.stored.layout import FIRST, RUN, STOP, WRITER, is_ours
from distcifar.cluster.stored.lease import leased, require_lease
from distcifar.cluster.stored.mirror import Mirror
from distcifar.cluster.stored.places import Marks
from distcifar.cluster.stored.pull import Follower, leave_notes, pull_to_go_on
from distcifar.cluster.stored.pushing import Pusher, push_end
from distcifar.config import RunSpec
from distcifar.errors import DistcifarError, StorageError
from distcifar.store import Store, is_url
from distcifar.tracking.journal import note_event, read_events
from distcifar.tracking.rows import NEWEST, RowFollower, last_row

FOLLOW_SECONDS = 2.0  # between two looks at what is new, or as long as the last one took
LOOK_SECONDS = 0.3  # between two looks at whether the user wants to stop


class RunCopy:
    """A run directory that is where --runs says: there is nothing to be done."""

    url = ""

    def claimed(self) -> None:
        """Called when the run directory is this run's."""

    @contextmanager
    def training(self, listen: Listener, *, apart: bool) -> Iterator[Listener]:
        """While the training goes on, which tells the listener that is yielded. apart: it has copies of its own."""
        yield listen


@contextmanager
def run_copy(spec: RunSpec, folder: Path, launch: str, announce: Announce) -> Iterator[RunCopy]:
    """Makes `folder` a copy of the run at a URL, if that is what --runs is, and in the end stores what is new in it.

    Raises RunError where another command trains that run, and StorageError.
    """
    if not is_url(spec.runs):
        yield RunCopy()
        return
    store, marks = Store(spec.runs).below(folder.name), Marks(folder)
    if not is_ours(store.listing()):
        raise StorageError(
            f"{store.place} holds other files",
            "A run needs a place of its own",
            "Choose --name",
        )
    with leased(store, folder.name, launch, marks.read(), announce):
        copy = StoredCopy(Mirror(folder, store, launch), marks, announce)
        copy.begin()
        try:
            yield copy
        except Exception:
            try:
                copy.end()
            except DistcifarError as problem:
                announce(str(problem))
            raise
        copy.end()


class StoredCopy(RunCopy):
    """A copy of a run at a URL, for the command that holds its lease."""

    def __init__(self, mirror: Mirror, marks: Marks, announce: Announce) -> None:
        self._mirror, self._marks, self._announce = mirror, marks, announce
        self._folder, self._store = mirror.folder, mirror.store
        self._claimed = self._behind = False
        self.url = self._store.url

    def begin(self) -> None:
        """The newest state of the run: what is stored, or the copy here if it is what was stored from."""
        tokens = self._marks.read()
        if self._mirror.writer() in tokens and (self._folder / RUN).exists():
            self._marks.write([*tokens, self._mirror.token])
            self._take()
        else:
            self._take()  # before what is there is looked at: from now on nobody changes it
            if not pull_to_go_on(self._mirror) and self._folder.exists():
                shutil.rmtree(self._folder)
            self._marks.write([self._mirror.token])
        self._inode = _inode(self._folder)

    def claimed(self) -> None:
        if _inode(self._folder) != self._inode:  # another run than the one that is there, if one is
            self._mirror.clear()
        self._store.delete(STOP)
        self._mirror.push(tables=False)
        self._claimed = True

    @contextmanager
    def training(self, listen: Listener, *, apart: bool) -> Iterator[Listener]:
        if not apart:
            with Pusher(self._mirror, self._tell, obeys=False):
                yield listen
            return
        late, self._behind = Late(self._folder, listen), True
        with Following(self._mirror, self._tell, self._bring):
            yield late
        late.tell_rest()

    def _bring(self, follower: Follower) -> None:
        """All that the workers have stored; nobody else writes there any more, and this copy is as good as theirs."""
        try:
            self._marks.write([])
            self._take()
            follower.pull(whole=True)
            self._marks.write([self._mirror.token])
        except OSError as error:
            raise StorageError(
                f"{error.filename or self._folder} cannot be written: {error.strerror or error}",
                f"What the workers have stored in {self._store.place} is copied here in the end",
                "Make room here; nothing is lost, and the same command goes on",
            ) from error
        self._behind = False

    def _take(self) -> None:
        require_lease(self._store, self._folder.name, self._mirror.token)
        self._mirror.take()

    def end(self) -> None:
        """Stores what this command has noted since; a run that was not even begun leaves nothing.

        Where the workers' checkpoints could not be brought, nothing there is made like this copy, which lacks them.
        """
        require_lease(self._store, self._folder.name, self._mirror.token)
        if self._behind:
            leave_notes(self._folder, self._store)
            return
        if self._claimed and self._folder.exists():
            push_end(self._mirror)
            return
        if self._claimed and self._is_used():
            return
        if self._claimed:
            self._mirror.clear()
        if self._claimed or not self._folder.exists():
            self._store.delete(WRITER)

    def _is_used(self) -> bool:
        """Whether what is there can be gone on with: then its copy was not discarded, but has vanished."""
        rows = self._mirror.look().get(NEWEST)
        return (rows is not None and rows.size > 0) or any(name != FIRST for name in self._mirror.sealed)

    def _tell(self, text: str) -> None:
        self._announce(text)
        note_event(self._folder, "storage", text)


class Late:
    """A listener that is also told what came with the last look at the store, when nobody follows any more."""

    def __init__(self, folder: Path, listen: Listener) -> None:
        self._folder, self._listen = folder, listen
        self._row, self._events = last_row(folder), read_events(folder)

    def __call__(self, row: dict[str, Any]) -> None:
        if row["kind"] in ("step", "epoch"):
            self._row = row
        else:
            self._events.append(row)
        self._listen(row)

    def tell_rest(self) -> None:
        """Tells what is in the run directory by now and was not told."""
        events = [event for event in read_events(self._folder) if event not in self._events]
        for row in events + RowFollower(self._folder, after=self._row).new_rows():
            self._listen(row)


class Following:
    """Keeps the driver's copy like the run that workers on other machines push, and hands on its wish to stop.

    bring: is called in the end, for all that is there.
    """

    def __init__(self, mirror: Mirror, tell: Announce, bring: Callable[[Follower], None]) -> None:
        self._follower, self._tell, self._bring = Follower(mirror), tell, bring
        self._store, self._stop = mirror.store, StopRequest(mirror.folder)
        self._over, self._away, self._asked = threading.Event(), False, False
        self._thread = threading.Thread(target=self._follow, name="follow", daemon=True)

    def __enter__(self) -> "Following":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._over.set()
        if kind is not None and not issubclass(kind, Exception):
            return  # Ctrl-C once more: at once
        self._thread.join()
        try:
            self._bring(self._follower)
        except DistcifarError as problem:
            if error is None:
                raise
            self._tell(str(problem))

    def _follow(self) -> None:
        follow_at = 0.0
        while not self._over.wait(LOOK_SECONDS):
            begun = time.monotonic()
            try:
                if self._stop.made() and not self._asked:
                    self._store.write(STOP, self._stop.reason().encode())
                    self._asked = True
                if begun < follow_at:
                    continue
                self._follower.pull()
                self._away = False
            except (StorageError, OSError) as problem:
                if not self._away:
                    self._away = True
                    self._tell(f"{problem} The workers go on; what they do is shown when it answers again")
            now = time.monotonic()
            follow_at = now + max(FOLLOW_SECONDS, now - begun)


def _inode(folder: Path) -> int | None:
    return folder.stat().st_ino if folder.exists() else None
