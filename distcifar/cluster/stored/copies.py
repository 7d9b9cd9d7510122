"""The copies of a run at a URL that its workers have, one on each machine."""

import platform
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from distcifar.cluster.agreement import agreed
from distcifar.cluster.job import Job
from distcifar.cluster.stopping import StopRequest
from distcifar.cluster.stored.lease import require_lease
from distcifar.cluster.stored.mirror import Mirror
from distcifar.cluster.stored.places import HOME, Marks, runs_here
from distcifar.cluster.stored.pull import hand_over, pull_to_go_on
from distcifar.cluster.stored.pushing import Pusher
from distcifar.cluster.writer import take_writer_lock
from distcifar.errors import DistcifarError, StorageError
from distcifar.store import Store
from distcifar.tracking.journal import note_event
from distcifar.tracking.outcome import run_lock
from distcifar.world import World


@contextmanager
def own_copy(job: Job, world: World) -> Iterator[Job]:
    """The job with a run directory of this machine, where the driver's is on another; the primary's is pushed.

    A collective. Raises the error family on all ranks alike, at the end on the primary alone.
    """
    if not job.store:
        yield job
        return
    mine = uuid.uuid4().hex[:8]
    token = world.first(mine)
    assert token is not None
    folder = runs_here(job.spec.runs) / ".ranks" / job.folder.name  # no run has such a name
    store = Store(job.store)
    mirror = Mirror(folder, store.patient(_print), token)  # a restart often finds the network still away

    def take() -> None:
        if token == mine:
            require_lease(mirror.store, job.folder.name, job.launch)
            mirror.take()

    agreed(world, take)
    agreed(world, lambda: _pull_once(mirror))
    mirror.store = store
    job = replace(job, folder=folder)
    if token == mine:
        with Pusher(mirror, lambda text: _tell(folder, text), obeys=True):
            yield job
        return
    try:
        yield job
    except Exception:
        with suppress(DistcifarError):  # the failure itself is what is told
            hand_over(folder, mirror.store)
        raise


def _pull_once(mirror: Mirror) -> None:
    """What is stored, for all ranks of this machine: the first one brings it, and the others wait for it."""
    folder, marks = mirror.folder, Marks(mirror.folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with run_lock(folder, "pull"):
            if mirror.token in marks.read():
                return
            lock, _ = take_writer_lock(folder)  # the primary of an older group may live on for a while
            try:
                _pull(mirror)
            finally:
                lock.release()
            marks.write([mirror.token])
    except OSError as error:
        raise StorageError(
            f"{error.filename or folder} on {platform.node()} cannot be written: {error.strerror or error}",
            "Each machine has a copy of a run at a URL",
            f"Make room, or let {HOME} be writable there",
        ) from error


def _pull(mirror: Mirror) -> None:
    if not pull_to_go_on(mirror):
        raise StorageError(
            f"{mirror.store.place} holds no run",
            "Workers take the run that the command has put there",
            "Type the same command again",
        )
    StopRequest(mirror.folder).clear()


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _tell(folder: Path, text: str) -> None:
    _print(text)
    note_event(folder, "storage", text)
