"""The lock of a run directory's only writer, taken from a process of an older group that is still there."""

from collections.abc import Callable
from pathlib import Path

from filelock import BaseFileLock, Timeout

from distcifar.cluster.watchdog import leave_mark
from distcifar.errors import RunError
from distcifar.tracking.outcome import writer_lock

SOON_SECONDS = 10.0  # in which the primary of a driver that was killed has gone
WRITER_SECONDS = 180.0  # for one that was cut off: until a file server has forgotten its lock


def take_writer_lock(folder: Path, wait: Callable[[str], object] = lambda text: None) -> tuple[BaseFileLock, str]:
    """The lock, held, and the mark left for a primary that lives on elsewhere, cut off, which gives the lock back then.

    wait: is told where it takes long. Raises RunError where nobody gives it back.
    """
    lock, mark = writer_lock(folder), leave_mark(folder)
    for seconds in (SOON_SECONDS, WRITER_SECONDS):
        try:
            lock.acquire(timeout=seconds, poll_interval=0.1)
            return lock, mark
        except Timeout:
            if seconds == SOON_SECONDS:
                wait(f"another process still writes into the run directory; waiting {WRITER_SECONDS:.0f} s for it")
    raise RunError(
        f"Another process writes into {folder}",
        "A run has one primary worker",
        "Wait for the other one to end, or choose another --name",
    )
