"""Checkpoints written beside the training: captured between two steps, sealed by a thread.

The loop stands still only while the state is copied. The thread takes the newest snapshot that waits: on a disk
that is slower than the snapshots come, the ones between are left out and training is not held up.
"""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from distcifar.errors import StorageError
from distcifar.training.checkpoint import Snapshot, prune_checkpoints, write_checkpoint


class CheckpointWriter:
    """Writes snapshots under `root` in a thread of its own; `before` runs ahead of each (it flushes the journal)."""

    def __init__(self, root: Path, *, keep: int, before: Callable[[], None]) -> None:
        self._root, self._keep, self._before = root, keep, before
        self._changed = threading.Condition()
        self._waiting: tuple[Snapshot, tuple[int, ...]] | None = None
        self._busy = self._closed = False
        self.problem: Exception | None = None
        # A daemon: whoever does not close the writer loses no more than a half-written directory set aside.
        self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
        self._thread.start()

    def submit(self, snapshot: Snapshot, best_steps: tuple[int, ...]) -> None:
        """Hands `snapshot` over and returns; `best_steps` are kept when older ones are removed."""
        with self._changed:
            self._waiting = (snapshot, best_steps)
            self._changed.notify_all()

    def drain(self) -> None:
        """Returns once everything handed over is sealed on the disk, or has failed (see `problem`)."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting is None and not self._busy)

    def close(self) -> None:
        """Drains, and ends the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting is not None or self._closed)
                if self._waiting is None:
                    return
                (snapshot, best_steps), self._waiting, self._busy = self._waiting, None, True
            try:
                self._write(snapshot, best_steps)
            finally:
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()

    def _write(self, snapshot: Snapshot, best_steps: tuple[int, ...]) -> None:
        try:
            self._before()
            write_checkpoint(self._root, snapshot)
            prune_checkpoints(self._root, best_steps=best_steps, keep=self._keep)
        except (OSError, SafetensorError) as error:
            self.problem = storage_error(self._root, snapshot.step, error, needed=snapshot.size_bytes)
        except Exception as error:  # a bug: raised by the training when it next looks, not lost with this thread
            self.problem = error


def storage_error(folder: Path, step: int, error: Exception, *, needed: int = 0) -> StorageError:
    """What to tell when `step` cannot be recorded in `folder`, with the bytes needed and free."""
    need = f"{needed / 1e6:,.1f} MB are needed, " if needed else ""
    return StorageError(
        f"Step {step} cannot be recorded in {folder}: {error} ({need}{_free(folder)})",
        "A run goes on only if its state can be saved",
        "Make room, then type the same command: it goes on from the last good checkpoint",
    )


def _free(folder: Path) -> str:
    """How much room there is for `folder`, in words; a disk that is gone cannot tell."""
    try:
        place = next((p for p in (folder, *folder.parents) if p.exists()), Path("/"))
        return f"{shutil.disk_usage(place).free / 1e6:,.1f} MB are free"
    except OSError as error:
        return f"what is free cannot be read: {error}"
