"""Signs of life of each rank, and what is done when they stop: a hang is named, dumped and ended.

Each rank leaves a small file in the run directory, ranks/N.json, that says where it is. A thread refreshes it every
second, so that a process that stands still as a whole can be told from one whose training thread does. When a rank has
taken no step for a minute, its thread looks at the others' files and who is behind is told; after --hang-seconds it
ends its own process: Ray then restarts the group. Clocks are not compared between hosts; a pause of the whole machine
is not counted.

A host that was cut off goes on for a while, and its rank would keep the run directory from those that follow it. So
each group leaves its mark there, and a rank that finds another one ends itself.
"""

import contextlib
import faulthandler
import json
import os
import platform
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distcifar.cluster.collectives import flight_record, last_collective
from distcifar.files import write_atomically
from distcifar.tracking.journal import append_event, note_event
from distcifar.world import World

TICK = 1.0  # seconds between two refreshes
NAMING_SECONDS = 55.0  # without a new stage, after which it takes seconds to see who holds the others up, and to tell
PATIENT = ("start", "opening", "meeting", "compile")  # may take long: a fetch, a first connection; named, and not ended
MARK = "group"  # its file in the run directory
STILL_SECONDS = 5.0  # without a new stage, after which a rank's sign says which collective it has come to


@dataclass(frozen=True)
class Sign:
    """Where a rank was at its `tick`: number of stages entered so far, the stage and the step it belongs to."""

    rank: int
    host: str
    pid: int
    tick: int
    entered: int
    stage: str
    step: int
    collective: str = ""  # the last one; only of a rank that stands still

    def __str__(self) -> str:
        last = f", last collective {self.collective}" if self.collective else ""
        return f"rank {self.rank} on {self.host} (process {self.pid}, {self.stage} at step {self.step}{last})"


def leave_mark(folder: Path) -> str:
    """The run directory belongs to the group of this process from now on; ranks of another one end themselves."""
    mark = uuid.uuid4().hex
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / MARK, mark)
    return mark


def mark_of(folder: Path) -> str:
    """The mark of the group that the run directory belongs to; "" where there is none, or it cannot be read now."""
    try:
        return (folder / MARK).read_text()
    except OSError:
        return ""


def remove_mark(folder: Path, mark: str) -> None:
    """The group of that mark has ended."""
    with contextlib.suppress(OSError):
        if mark_of(folder) == mark:
            (folder / MARK).unlink(missing_ok=True)


def culprits(before: Mapping[int, Sign], after: Mapping[int, Sign]) -> list[Sign]:
    """Who is behind, from the signs of all ranks at two moments a few ticks apart.

    Ranks whose process stands still; else those that have entered fewer stages than the foremost; else all.
    """
    if not after:
        return []
    frozen = [sign for rank, sign in after.items() if rank in before and sign.tick == before[rank].tick]
    if frozen:
        return frozen
    foremost = max(sign.entered for sign in after.values())
    behind = [sign for sign in after.values() if sign.entered < foremost]
    return behind or list(after.values())


class Pulse:
    """This rank's signs of life, from `with` to its end; `enter` is called by the training thread.

    folder: the run directory. seconds: without a new stage after which the process ends itself (0: never), other than
    PATIENT ones.
    """

    def __init__(self, folder: Path, world: World, seconds: float, end: Callable[[], None] | None = None) -> None:
        self._folder, self._rank, self._ranks, self._seconds = folder, world.rank, world.size, seconds
        self._end = end or (lambda: os.kill(os.getpid(), signal.SIGKILL))
        self._entered, self._stage, self._step, self._tick = 0, "start", 0, 0
        self._mark = ""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Pulse":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        forget(self._path(self._rank))

    def belong(self, mark: str) -> None:
        """The run directory is this group's as long as it has that mark ("": it is not looked at)."""
        self._mark = mark

    def enter(self, stage: str, step: int) -> None:
        """The training thread enters `stage` of `step`. Costs two assignments."""
        self._stage, self._step = stage, step
        self._entered += 1

    def _watch(self) -> None:
        entered, waited, told, last = -1, 0.0, False, time.monotonic()
        while not self._over.wait(TICK):
            now = time.monotonic()
            # A tick that took long: this process was stopped, or the machine. That time is nobody's hang.
            waited, last = waited + min(now - last, 2 * TICK), now
            if self._entered != entered:
                entered, waited, told = self._entered, 0.0, False
            self._write(still=waited > STILL_SECONDS)
            if self._mark and mark_of(self._folder) not in (self._mark, ""):
                self._end()  # without a word: the directory is no longer this group's
            if waited > NAMING_SECONDS and not told:
                told = True
                self._name(waited)
            if self._seconds and waited > self._seconds and self._stage not in PATIENT:
                self._give_up(waited)
                waited = 0.0

    def _write(self, *, still: bool) -> None:
        self._tick += 1
        last = last_collective(flight_record()) if still else ""
        sign = Sign(self._rank, platform.node(), os.getpid(), self._tick, self._entered, self._stage, self._step, last)
        leave(self._path(self._rank), asdict(sign))

    def _observed(self) -> tuple[Mapping[int, Sign], Mapping[int, Sign]] | None:
        """All ranks' signs at two moments a few ticks apart; None where this rank has gone on in the meantime."""
        entered, before = self._entered, self.signs()
        for _ in range(3):
            if self._over.wait(TICK) or self._entered != entered:
                return None
            self._write(still=True)
        return before, self.signs()

    def _name(self, waited: float) -> None:
        """Tells who holds the others up; of the ranks that see it the first one does."""
        observed = self._observed()
        if observed is None:
            return
        before, after = observed
        alive = [rank for rank, sign in after.items() if rank not in before or sign.tick != before[rank].tick]
        if self._rank == min(alive, default=self._rank):
            text = f"no step for {waited:.0f} s, held up by {', '.join(map(str, culprits(before, after)))}"
            if self._seconds and self._stage not in PATIENT:
                text += f"; ended after {self._seconds:.0f} s of it"
            note_event(self._folder, "standing still", text)

    def _give_up(self, waited: float) -> None:
        """Names who hangs, leaves this process's stacks, and ends it; unless it goes on in the meantime."""
        observed = self._observed()
        if observed is None:
            return
        behind = culprits(*observed)
        with contextlib.suppress(OSError):  # the storage may be what hangs: that must not keep the process
            with open(self._folder / f"stacks-rank-{self._rank}.txt", "a") as file:
                file.write(f"rank {self._rank}, no new stage for {waited:.0f} s\n")
                file.flush()  # the stacks go past the buffer
                faulthandler.dump_traceback(file)
            (self._folder / f"collectives-rank-{self._rank}.json").write_bytes(flight_record())
            text = f"no step for {waited:.0f} s, held up by {', '.join(map(str, behind))}"
            print(f"hang: {text}; the same command goes on", file=sys.stderr, flush=True)
            append_event(self._folder, "hang", text, rank=self._rank)
        self._end()

    def signs(self) -> dict[int, Sign]:
        """Of the ranks of this run; files of more ranks may be left from a start that was killed."""
        signs = {}
        for rank in range(self._ranks):
            try:
                signs[rank] = Sign(**json.loads(self._path(rank).read_text()))
            except (OSError, ValueError, TypeError):
                continue  # not yet there, removed in this moment, or of another version
        return signs

    def _path(self, rank: int) -> Path:
        return self._folder / "ranks" / f"{rank}.json"


def leave(path: Path, note: Mapping[str, Any]) -> None:
    """`path`, a rank's file in ranks/, holds the older JSON or this one, for those who look at it meanwhile."""
    try:  # renamed without a flush: what matters is that readers see a whole line
        path.parent.mkdir(exist_ok=True)
        path.with_suffix(".new").write_text(json.dumps(note))
        os.replace(path.with_suffix(".new"), path)
    except OSError:
        return  # full or vanished storage: the recorder finds it and says so


def forget(path: Path) -> None:
    """Removes a rank's file; the last one takes the folder with it."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
        path.parent.rmdir()
