"""Which command trains the run at a URL: an object that counts up while its holder lives. Clocks are not compared.

Who finds one that does not count up takes the run over; its late holder, if there is one, may no longer write
(Mirror.take): of two that take it at once one goes on.
"""

import json
import os
import platform
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from distcifar.cluster.stored.layout import LAUNCH
from distcifar.errors import RunError, StorageError
from distcifar.store import Store

BEAT_SECONDS = 5.0
WATCH_SECONDS = 15.0  # without a beat, after which a holder is dead


@contextmanager
def leased(
    store: Store, name: str, launch: str, dead: Collection[str], announce: Callable[[str], None], *,
    beat: float = BEAT_SECONDS,
) -> Iterator[None]:  # fmt: skip
    """Holds the run `name` for this launch. Raises RunError where another one is alive.

    dead: launches whose processes are known to be no more: their lease is not watched.
    """
    found = _read(store)
    if found is not None and found["launch"] not in dead:
        _watch(store, name, found, announce, WATCH_SECONDS * beat / BEAT_SECONDS)
    lease = {"host": platform.node(), "pid": os.getpid(), "launch": launch}
    _write(store, lease | {"beat": 0})
    over = threading.Event()
    thread = threading.Thread(target=_beat, args=(store, lease, beat, over), name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        _give_back(store, launch)


def require_lease(store: Store, name: str, launch: str) -> None:
    """Raises RunError where another command has taken the run over."""
    found = _read(store)
    if found is None or found["launch"] != launch:
        raise taken_over(name)


def _watch(store: Store, name: str, found: dict[str, Any], announce: Callable[[str], None], seconds: float) -> None:
    """Returns when nothing has come from the holder for `seconds`."""
    announce(f"Looking for {seconds:.0f} s whether process {found['pid']} on {found['host']} still trains this run")
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(seconds / 15)
        now = _read(store)
        if now is None:
            return
        if now != found:
            raise _taken(name, now)


def taken_over(name: str) -> RunError:
    """What to tell a command that trains a run which another one has begun to train."""
    return RunError(
        f"The run {name!r} was taken over by another command",
        "One command trains a run at a time; where nothing is heard of it for 15 s, another one may",
        "Leave it to that one: what this one has not stored is trained again",
    )


def _taken(name: str, holder: dict[str, Any]) -> RunError:
    return RunError(
        f"The run {name!r} is being trained by process {holder['pid']} on {holder['host']}",
        "One command trains a run at a time",
        "Wait for it, stop it, or choose another --name",
    )


def _beat(store: Store, lease: dict[str, Any], seconds: float, over: threading.Event) -> None:
    once, count = Store(store.url, tries=1), 0
    while not over.wait(seconds):
        count += 1
        try:
            found = _read(once)
            if found is None or found["launch"] != lease["launch"]:
                return  # taken over: who writes next is told
            _write(once, lease | {"beat": count})
        except StorageError:
            continue  # the next beat tries again, and the mirror tells it


def _give_back(store: Store, launch: str) -> None:
    """Removes the lease; where the store is away it stays, and whoever comes watches it."""
    once = Store(store.url, tries=1)
    try:
        found = _read(once)
        if found is not None and found["launch"] == launch:
            once.delete(LAUNCH)
    except StorageError:
        return


def _read(store: Store) -> dict[str, Any] | None:
    """The lease that is there; None where there is none that can be read."""
    try:
        found = json.loads(store.read(LAUNCH) or b"")
        return {name: found[name] for name in ("host", "pid", "launch", "beat")}
    except (ValueError, KeyError, TypeError):
        return None


def _write(store: Store, lease: dict[str, Any]) -> None:
    store.write(LAUNCH, json.dumps(lease).encode())
