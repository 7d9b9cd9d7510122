"""A thread that pushes a run directory to its URL while it is trained, and at the end what is left."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

from distcifar.cluster.stopping import StopRequest
from distcifar.cluster.stored.layout import STOP
from distcifar.cluster.stored.mirror import Mirror
from distcifar.errors import DistcifarError, RunError, StorageError
from distcifar.store import Store

PUSH_SECONDS = 2.0  # between two pushes, or as long as the last one took
STOP_SECONDS = 1.0  # between two looks at whether somebody asks for a stop
FLUSH_SECONDS = 60.0  # for which the end waits for a store that is away


def push_end(mirror: Mirror) -> None:
    """All that is left. Raises StorageError, and RunError for what cannot be read here: a minute later neither."""
    try:
        mirror.push()
    except OSError as error:
        raise RunError(
            f"The end of the run cannot be read: {error}",
            f"What is in {mirror.folder} is stored in {mirror.store.place}",
            "Type the same command again: it goes on from what was stored last",
        ) from error


class Pusher:
    """Pushes from `with` to its end, where it raises StorageError for what is not stored, RunError for what may not be.

    tell: takes sentences for the user. obeys: whether a stop that is asked for in the store is asked for here.
    """

    def __init__(self, mirror: Mirror, tell: Callable[[str], None], *, obeys: bool) -> None:
        self._mirror, self._tell = mirror, tell
        self._place = mirror.store.place
        self._over = threading.Event()
        self._away = False
        self._problem: Exception | None = None
        targets = [self._push, *([self._obey] if obeys else [])]
        self._threads = [threading.Thread(target=target, name="mirror", daemon=True) for target in targets]

    def __enter__(self) -> "Pusher":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._over.set()
        if kind is not None and not issubclass(kind, Exception):
            return  # Ctrl-C once more: at once
        for thread in self._threads:
            thread.join()
        try:
            self._flush()
        except DistcifarError as problem:
            if error is None:
                raise
            self._tell(str(problem))

    def _flush(self) -> None:
        """All that is left."""
        until = time.monotonic() + FLUSH_SECONDS
        while self._problem is None:
            try:
                push_end(self._mirror)
                return
            except StorageError as error:
                if time.monotonic() < until:
                    self._tell_away(error)
                    time.sleep(PUSH_SECONDS)
                    continue
                raise StorageError(
                    f"The end of the run is not in {self._place}, but in {self._mirror.folder}: {error.found}",
                    "A run at a URL is over when all of it is there",
                    "Type the same command, on the same machine if you can: it goes on from what was stored last",
                ) from error
        raise self._problem

    def _push(self) -> None:
        pause = PUSH_SECONDS
        while not self._over.wait(pause):
            begun = time.monotonic()
            try:
                pushed = self._mirror.push(tables=False)
                if self._away and pushed:
                    self._away = False
                    self._tell(f"{self._place} answers again")
            except (StorageError, OSError) as error:
                self._tell_away(error)
            except Exception as error:  # taken over, or a bug: raised at the end, which is now
                self._problem = error
                with suppress(OSError):
                    StopRequest(self._mirror.folder).make("taken over" if isinstance(error, RunError) else "storage")
                return
            pause = max(PUSH_SECONDS, time.monotonic() - begun)

    def _tell_away(self, error: Exception) -> None:
        if not self._away:
            self._away = True
            self._tell(f"{error} Training goes on; what it leaves waits in {self._mirror.folder}")

    def _obey(self) -> None:
        """Asks the ranks to stop where the driver, on another machine, asks for it."""
        once = Store(self._mirror.store.url, tries=1)
        while not self._over.wait(STOP_SECONDS):
            with suppress(StorageError, OSError):  # the other thread tells it
                reason = once.read(STOP)
                if reason is not None:
                    StopRequest(self._mirror.folder).make(reason.decode())
                    return
