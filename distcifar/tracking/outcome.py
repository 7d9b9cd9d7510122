"""How a run stands, told from its directory alone: by its summary, its last events, and who holds its lock."""

import itertools
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from distcifar.store import Store, is_url
from distcifar.tracking.journal import read_events

BEGINNINGS = ("start", "continue", "rollback")
ENDS = ("stopped", "failed", "ended")
LOCKS = ("launch", "writer", "pull", "online", "offline")  # who trains, writes, brings it from a URL, ships where


@dataclass(frozen=True)
class Outcome:
    """kind: running, finished, ended (a trial, by its search), stopped, preempted, failed or killed.

    text: what the last event says of it.
    """

    kind: str
    text: str = ""

    @property
    def over(self) -> bool:
        """Whether no row will come until somebody types the command again."""
        return self.kind != "running"

    @property
    def exit_code(self) -> int:
        """As a shell would report it; W&B calls a run finished whose exit code is 0."""
        return {"finished": 0, "ended": 0, "stopped": 130, "preempted": 143, "killed": 137}.get(self.kind, 1)


def unfinished_name(runs: str, stem: str) -> str:
    """`stem`, `stem`-2, `stem`-3, ...: the first that names no finished run in `runs`, a folder or a URL."""

    def is_finished(name: str) -> bool:
        if is_url(runs):
            return Store(runs).below(name).read("summary.json") is not None
        return (Path(runs) / name / "summary.json").exists()

    names = (stem if number == 1 else f"{stem}-{number}" for number in itertools.count(1))
    return next(name for name in names if not is_finished(name))


def launch_lock(folder: Path) -> FileLock:
    """The lock of the program that trains the run in `folder`; the kernel frees it when its holder dies."""
    return run_lock(folder, "launch")


def writer_lock(folder: Path) -> FileLock:
    """The lock of the primary worker, the only one that writes into the run directory."""
    return run_lock(folder, "writer")


def run_lock(folder: Path, kind: str) -> FileLock:
    """One of LOCKS, beside the run directory: names of runs have no ~, so no two runs share a file."""
    return FileLock(_lock_file(folder, kind))


def remove_locks(folder: Path) -> None:
    """Removes the lock files of a run that is no more, and of no other."""
    for kind in LOCKS:
        _lock_file(folder, kind).unlink(missing_ok=True)


def _lock_file(folder: Path, kind: str) -> Path:
    return folder.with_name(f".{folder.name}~{kind}.lock")


def outcome(folder: Path) -> Outcome:
    """How the run in `folder` stands now."""
    return told_outcome(folder) or (Outcome("running") if is_held(launch_lock(folder)) else Outcome("killed"))


def told_outcome(folder: Path) -> Outcome | None:
    """What the run itself says about its end; None where it says nothing: it is going on, or it was killed."""
    if (folder / "summary.json").exists():
        return Outcome("finished")
    for event in reversed(read_events(folder)):
        if event["kind"] in BEGINNINGS:
            return None
        if event["kind"] in ENDS:
            preempted = event["kind"] == "stopped" and event.get("signal") == "SIGTERM"
            return Outcome("preempted" if preempted else event["kind"], event["text"])
    return None


def is_held(lock: FileLock) -> bool:
    """Whether another process holds `lock`."""
    if not Path(lock.lock_file).exists():
        return False
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False
