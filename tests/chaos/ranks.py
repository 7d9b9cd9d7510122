"""Whole runs of `train_rank` in processes of their own, which a fault brought into them kills at a known place."""

import csv
import faulthandler
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache
from itertools import count
from multiprocessing import connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
import torch.distributed as dist

from distcifar.cluster import rank as rank_module
from distcifar.cluster import stopping
from distcifar.cluster.job import Job
from distcifar.cluster.rank import train_rank
from distcifar.cluster.restarts import last_step
from distcifar.cluster.stopping import StopRequest
from distcifar.config import DataConfig, RunSpec
from distcifar.data import build
from distcifar.data.loader import Batch, TrainLoader
from distcifar.data.plan import epoch_order, global_batch, steps_per_epoch
from distcifar.data.prepare import PreparedData, prepare
from distcifar.errors import DistcifarError
from distcifar.files import sha256_of
from distcifar.tracking import journal as journal_module
from distcifar.tracking.journal import COLUMNS, Journal, read_events, read_rows
from distcifar.training import checkpoint, saving, step
from distcifar.training.checkpoint import Snapshot, checkpoints
from distcifar.training.reports import FitOptions, Row, StepLog
from distcifar.world import World
from tests.support import CLOCK_FIELDS, small_images, small_recipe

TRAIN, VALIDATION, TEST = 68, 24, 30
STEPS = 7  # of an epoch: six batches of 10 images and one of 8
EVALUATION_BATCH = 4  # several batches on each of two ranks
SUMMARY_CLOCKS = ("seconds", "images_per_s")
LIMIT = 120.0  # seconds for an attempt: what takes longer hangs
PRELOAD = ["torch._dynamo", "distcifar.data.kernel", "tests.chaos.ranks"]


# What is trained


def prepared(root: Path) -> PreparedData:
    """Noise around a brightness of each class, 8 x 8 pixels, as betons."""
    images, labels = small_images(TRAIN + VALIDATION, 1)
    test_images, test_labels = small_images(TEST, 2)
    path = root / "small.npz"
    np.savez(path, train_x=images, train_y=labels, test_x=test_images, test_y=test_labels)
    return prepare(DataConfig(dataset=f"npz:{path}", validation=VALIDATION), root / "data", announce=lambda _: None)


def a_job(data: PreparedData, folder: Path, recipe: dict[str, Any], **spec: Any) -> Job:
    """Two epochs of seven steps on `data`, a checkpoint at every third; unless `recipe` and `spec` say otherwise."""
    whole = small_recipe(**{"batch_size": 10, "data": data.manifest.data, **recipe})
    where = RunSpec(**{"loader": "resident", "device": "cpu", "checkpoint_steps": 3, **spec})
    return Job(whole, where, folder, data.folder, data.digest, "")


# The faults


@dataclass(frozen=True)
class Fault:
    """What befalls rank `rank` when it comes to `point` (a key of POINTS) for the `number`-th time."""

    point: str
    number: int = 1
    rank: int = 0
    delay: float = 0.0  # seconds, of RANDOM_TIME


RANDOM_TIME = "at a random moment"  # `delay` seconds after the `number`-th row of the attempt


@dataclass(frozen=True)
class Point:
    """A place of a run: the calls of `owner.name` for which `counts`; one of them becomes `instead(original, ...)`."""

    owner: Any
    name: str
    instead: Callable[..., Any]
    most: int = 1  # times that an undisturbed run of two epochs comes there, at least
    counts: Callable[..., bool] = lambda *_, **__: True
    everywhere: bool = False  # on every rank; else on the primary only
    only_after: str = ""  # a run comes there only when it was killed at that point before


def _at_call(owner: Any, name: str, number: int, instead: Callable[..., Any], counts: Callable[..., bool]) -> None:
    original, numbers = getattr(owner, name), count(1)

    def patched(*args: Any, **kwargs: Any) -> Any:
        if counts(*args, **kwargs) and next(numbers) == number:
            return instead(original, *args, **kwargs)
        return original(*args, **kwargs)

    setattr(owner, name, patched)


def _die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _after(original: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    original(*args, **kwargs)
    _die()


def _half_a_file(original: Callable[..., Any], tensors: Any, path: Path) -> None:
    original(tensors, path)
    os.truncate(path, path.stat().st_size // 2)
    _die()


def _half_removed(_: Callable[..., Any], folder: Path, **__: Any) -> None:
    for file in sorted(Path(folder).iterdir())[:3]:
        file.unlink()
    _die()


def _between_files(original: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """metrics.jsonl is written, metrics.csv not yet: its text is asked for in between."""
    _at_call(journal_module, "_csv_text", 1, _die, lambda *_, **__: True)
    original(*args, **kwargs)


def _half_a_row(original: Callable[..., Any], journal: Journal, rows: Sequence[Row]) -> None:
    path = journal.folder / "metrics.jsonl"
    before = path.stat().st_size

    def torn(*_: Any) -> None:
        os.truncate(path, (before + path.stat().st_size) // 2)
        _die()

    _at_call(journal_module, "_csv_text", 1, torn, lambda *_: True)
    original(journal, rows)


def _half_a_line(original: Callable[..., Any], journal: Journal, rows: Sequence[Row]) -> None:
    path = journal.folder / "metrics.csv"
    before = path.stat().st_size
    original(journal, rows)
    os.truncate(path, (before + path.stat().st_size) // 2)
    _die()


def _half_an_event(original: Callable[..., Any], folder: Path, *args: Any, **facts: Any) -> None:
    original(folder, *args, **facts)
    path = folder / "events.jsonl"
    os.truncate(path, path.stat().st_size - 20)
    _die()


def _stop(original: Callable[..., Any], journal: Journal, rows: Sequence[Row]) -> None:
    StopRequest(journal.folder).make()
    original(journal, rows)


def _fill(original: Callable[..., Any], journal: Journal, rows: Sequence[Row]) -> None:
    """Nothing more goes on the disk, but for what has room in the last page of a file."""
    with suppress(OSError), open(journal.folder.parent / "ballast", "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    original(journal, rows)


def _vanish(original: Callable[..., Any], journal: Journal, rows: Sequence[Row]) -> None:
    _take_away(journal.folder)
    original(journal, rows)


def _vanish_before_a_save(original: Callable[..., Any], root: Path, snapshot: Snapshot) -> Any:
    _take_away(root.parent)
    return original(root, snapshot)


def _take_away(folder: Path) -> None:
    """At once, not file by file."""
    folder.rename(folder.with_name("taken away"))


def _takes(name: str) -> Callable[..., bool]:
    """For os.rename and os.replace: whether something takes a name that begins with `name`."""
    return lambda _, target, *__, **___: Path(target).name.startswith(name)


def _old_aside(_: Any, target: Path) -> bool:
    return "-old-" in Path(target).name


def _saved_in(name: str) -> Callable[..., bool]:
    """For save_file: whether the file belongs to a folder that will be called `name`..."""
    return lambda _, path: f"-{name}" in path.parent.name


LAST_MOMENT = "at the end, after the summary"
POINTS = {
    "before the data are opened": Point(rank_module, "open_data", _die, everywhere=True),
    "in a step, before the update": Point(step, "_update", _die, 14, everywhere=True),
    "in the update, after the optimizer": Point(torch.amp.GradScaler, "update", _die, 14, everywhere=True),
    "between the update and its row": Point(StepLog, "add", _die, 14, everywhere=True),
    "in the journal, half a row": Point(Journal, "append", _half_a_row, 16),
    "in the journal, half a line of the csv": Point(Journal, "append", _half_a_line, 16),
    "in the journal, between its two files": Point(Journal, "append", _between_files, 16),
    "in the journal, half an event": Point(journal_module, "append_event", _half_an_event, 2),
    "in an evaluation": Point(FitOptions, "interrupted", _die, 9, everywhere=True),
    "in a save, half a file": Point(checkpoint, "save_file", _half_a_file, 4, _saved_in("step-")),
    "in a save, before the seal": Point(checkpoint, "seal", _die, 2),
    "in a save, before the rename": Point(os, "rename", _die, 2, _takes("step-")),
    "in a save, after the rename": Point(os, "rename", _after, 2, _takes("step-")),
    "while old checkpoints are removed": Point(saving, "prune_checkpoints", _die, 2),
    "with an old checkpoint half removed": Point(shutil, "rmtree", _half_removed),
    "at the end, half a model": Point(checkpoint, "save_file", _half_a_file, 1, _saved_in("model")),
    "at the end, before the model's rename": Point(os, "rename", _die, 1, _takes("model")),
    "at the end, before the summary": Point(os, "replace", _die, 1, _takes("summary.json")),
    LAST_MOMENT: Point(os, "replace", _after, 1, _takes("summary.json")),
    "at the end, the old model moved away": Point(os, "rename", _after, 1, _old_aside, only_after=LAST_MOMENT),
    "going on, the checkpoint found": Point(rank_module, "newest_good", _after, only_after=RANDOM_TIME),
    "going on, before the journal is cut": Point(Journal, "cut", _die, only_after=RANDOM_TIME),
    "going on, between the cuts of its two files": Point(Journal, "cut", _between_files, only_after=RANDOM_TIME),
    "going on, after the journal is cut": Point(Journal, "cut", _after, only_after=RANDOM_TIME),
}
OTHERS = {  # not drawn at random
    "stopped": Point(Journal, "append", _stop),
    "killed": Point(Journal, "append", _die),
    "full": Point(Journal, "append", _fill),
    "vanished before a row": Point(Journal, "append", _vanish),
    "vanished before a save": Point(saving, "write_checkpoint", _vanish_before_a_save),
}


# A rank


def _rank(job: Job, world: World, scratch: Path, fault: Fault | None, patient: bool) -> None:
    """The process of one rank. Leaves in `scratch` what it consumed, when it told rows, and how it ended."""
    with open(scratch / f"stderr-{world.rank}", "w") as file:
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    numba.set_num_threads(1)
    faulthandler.dump_traceback_later(LIMIT - 5, exit=False)
    build.EVALUATION_BATCH = {"cpu": EVALUATION_BATCH}  # type: ignore[misc]
    stopping.POLL_SECONDS = 0.0
    rank_module.REPORT_SECONDS = 0.0  # type: ignore[misc]
    _note_batches(scratch / f"consumed-{world.rank}")
    if patient:
        _await_saves()
    if fault is not None and fault.point != RANDOM_TIME:
        point = (POINTS | OTHERS)[fault.point]
        _at_call(point.owner, point.name, fault.number, point.instead, point.counts)
    if world.size > 1:
        place = f"file://{scratch}/rendezvous"
        limit = timedelta(seconds=LIMIT)
        dist.init_process_group("gloo", init_method=place, rank=world.rank, world_size=world.size, timeout=limit)
    try:
        result = train_rank(job, world, listen=_Heard(scratch / "heard"), after_epoch=lambda _: None)
    except BaseException:
        (scratch / f"failed-{world.rank}").write_text(traceback.format_exc())
        raise
    (scratch / f"result-{world.rank}").write_bytes(pickle.dumps(result))
    if world.size > 1:
        dist.destroy_process_group()


@dataclass
class _Heard:
    """A listener that notes when it was told a row of metrics."""

    path: Path

    def __call__(self, row: Row) -> None:
        if row["kind"] in ("step", "epoch"):
            with open(self.path, "a") as file:
                file.write(f"{time.monotonic()}\n")


def _note_batches(path: Path) -> None:
    """Has each training batch that a loader gives written down at `path`."""
    original = TrainLoader.batches

    def batches(loader: TrainLoader, epoch: int, first_step: int = 0, *which: Any) -> Iterator[Batch]:
        for number, batch in enumerate(original(loader, epoch, first_step, *which), first_step):
            ids = batch.ids.tolist() if batch.counted else []
            with open(path, "a") as file:
                file.write(json.dumps([epoch, number, ids]) + "\n")
            yield batch

    TrainLoader.batches = batches  # type: ignore[method-assign]


def _await_saves() -> None:
    """Has the training wait until each checkpoint is sealed; steps as short as these leave most of them out."""
    original = saving.CheckpointWriter.submit

    def submit(writer: saving.CheckpointWriter, *args: Any) -> None:
        original(writer, *args)
        writer.drain()

    saving.CheckpointWriter.submit = submit  # type: ignore[method-assign]


# Attempts


@dataclass(frozen=True)
class Attempt:
    """How the processes of one start of a run have ended."""

    results: list[dict[str, Any] | None]  # what train_rank returned on each rank, if it did
    failures: list[str]  # tracebacks of ranks and of their threads
    killed: float | None  # when, by the monotonic clock
    hung: bool
    first_row: float | None  # when it told its first row
    seconds: float

    @property
    def summary(self) -> dict[str, Any]:
        """Of the primary; {} where there is none."""
        return (self.results[0] or {}).get("summary", {})

    @property
    def errors(self) -> list[DistcifarError | None]:
        """What each rank returned instead of a summary."""
        return [(result or {}).get("error") for result in self.results]

    def __str__(self) -> str:
        end = "hung" if self.hung else "killed" if self.killed else "ended"
        return "\n".join([f"{end} after {self.seconds:.1f} s with {self.results}", *self.failures])


def attempt(job: Job, size: int, scratch: Path, fault: Fault | None = None, *, patient: bool = False) -> Attempt:
    """Starts `job` on `size` ranks; when one has died the others are killed, as Ray does.

    patient: no step is taken while a checkpoint is written.
    """
    context = _server()
    scratch.mkdir(parents=True)
    job = replace(job, launch=scratch.name)
    given = [fault if fault and fault.rank == rank else None for rank in range(size)]
    ranks = [
        context.Process(target=_rank, args=(job, World(rank, size), scratch, given[rank], patient), daemon=True)
        for rank in range(size)
    ]
    began = time.monotonic()
    for process in ranks:
        process.start()
    if fault and fault.point == RANDOM_TIME:
        while len(_lines(scratch / "heard")) < fault.number and all(process.is_alive() for process in ranks):
            time.sleep(0.001)
        time.sleep(fault.delay)
        ranks[fault.rank].kill()
    while any(process.is_alive() for process in ranks) and not any(process.exitcode for process in ranks):
        connection.wait([process.sentinel for process in ranks if process.is_alive()], timeout=1)
        if time.monotonic() > began + LIMIT:
            break
    ended = time.monotonic()
    if fault:  # who failed because a peer had died may be seen first
        ranks[fault.rank].join(2)
    codes = [process.exitcode for process in ranks]
    for process in ranks:
        process.kill()
        process.join()
    heard = _lines(scratch / "heard")
    return Attempt(
        results=[pickle.loads(path.read_bytes()) if path.exists() else None for path in _of_ranks(scratch, size)],
        failures=_failures(scratch, hung=ended > began + LIMIT),
        killed=ended if -signal.SIGKILL in codes else None,
        hung=ended > began + LIMIT,
        first_row=float(heard[0]) if heard else None,
        seconds=ended - began,
    )


@cache
def _server() -> ForkServerContext:
    """What starts processes in a third of a second: it has imported all that they need, and nothing waits for that."""
    multiprocessing.set_forkserver_preload(PRELOAD)
    context = multiprocessing.get_context("forkserver")
    first = context.Process(target=time.monotonic)
    first.start()
    first.join()
    return context


def _failures(scratch: Path, *, hung: bool) -> list[str]:
    """What a rank has raised, what a thread of one has, and where they stood when they hung."""
    told = [path.read_text() for path in sorted(scratch.glob("stderr-*"))]
    raised = [path.read_text() for path in sorted(scratch.glob("failed-*"))]
    return raised + [text for text in told if hung or "Exception in thread" in text]


def _of_ranks(scratch: Path, size: int) -> list[Path]:
    return [scratch / f"result-{rank}" for rank in range(size)]


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


@dataclass(frozen=True)
class Kill:
    """A death and what it cost."""

    fault: Fault
    lost_steps: int | None  # None where the run never went on
    seconds: float | None  # from the death to the next row; None where none was due


@dataclass(frozen=True)
class Story:
    """All starts of a run, the last of which was left in peace."""

    attempts: list[Attempt]
    kills: list[Kill]


def live_through(job: Job, size: int, scratch: Path, faults: Sequence[Fault], *, patient: bool) -> Story:
    """Starts `job` again and again, with one fault after another, and then without."""
    attempts: list[Attempt] = []
    deaths: list[tuple[Fault, float, int, int]] = []
    for number, fault in enumerate([*faults, None]):
        attempts.append(attempt(job, size, scratch / f"attempt-{number}", fault, patient=patient))
        if fault is None or attempts[-1].killed is None:
            break
        reached = last_step(Journal(job.folder))
        deaths.append((fault, attempts[-1].killed, reached, len(_starts(job.folder))))
    starts, kills = _starts(job.folder), []
    for number, (fault, when, reached, before) in enumerate(deaths, 1):
        rows = [later.first_row for later in attempts[number:] if later.first_row]
        lost = reached - starts[before]["step"] if len(starts) > before else None
        kills.append(Kill(fault, lost, rows[0] - when if rows else None))
    return Story(attempts, kills)


def _starts(folder: Path) -> list[dict[str, Any]]:
    return [event for event in read_events(folder) if event["kind"] in ("start", "continue")]


# What is compared


def rows_without_clocks(folder: Path) -> list[Row]:
    """The rows of a run directory, without what a clock or the machine has put into them."""
    rows = read_rows(folder)
    return [{name: value for name, value in row.items() if name not in CLOCK_FIELDS} for row in rows]


def differences(folder: Path, whole: Path) -> list[str]:
    """In what the run directory `folder` differs from that of a run to which nothing has happened."""
    found = []
    if sha256_of(folder / "model" / "model.safetensors") != sha256_of(whole / "model" / "model.safetensors"):
        found.append("the final weights")
    last, whole_last = (checkpoints(run / "checkpoints")[0] for run in (folder, whole))
    if last.name != whole_last.name or sha256_of(last / "state.safetensors") != sha256_of(
        whole_last / "state.safetensors"
    ):
        found.append(f"the last checkpoint's state: {last.name}, {whole_last.name}")
    rows, whole_rows = rows_without_clocks(folder), rows_without_clocks(whole)
    if rows != whole_rows:
        found.append(f"the rows: {len(rows)} of {len(whole_rows)}")
    summary, whole_summary = (json.loads((run / "summary.json").read_text()) for run in (folder, whole))
    keys = (summary.keys() | whole_summary.keys()) - {*SUMMARY_CLOCKS}
    found += [f"{key} of the summary" for key in sorted(keys) if summary.get(key) != whole_summary.get(key)]
    return found + csv_problems(folder)


def csv_problems(folder: Path) -> list[str]:
    """What keeps metrics.csv from being metrics.jsonl's rows."""
    with open(folder / "metrics.csv", newline="") as file:
        header, *lines = csv.reader(file)
    rows = read_rows(folder)
    expected = [[str(row.get(name, "")) for name in COLUMNS] for row in rows]
    return [] if (header, lines) == (list(COLUMNS), expected) else ["metrics.csv"]


def plan_problems(job: Job, scratch: Path, steps: int) -> list[str]:
    """Where the batches that remained, of all attempts in `scratch`, are not the plan's: each sample once an epoch."""
    an_epoch = steps_per_epoch(TRAIN, job.recipe.batch_size, drop_last=False)
    consumed: dict[int, dict[int, list[int]]] = {}  # step -> rank -> ids
    starts = sorted(scratch.glob("attempt-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    for start in starts:
        given = {int(path.name.rpartition("-")[2]): _lines(path) for path in start.glob("consumed-*")}
        batches = [(rank, *json.loads(line)) for rank, lines in given.items() for line in lines]
        if not batches:
            continue
        first = min(epoch * an_epoch + number for _, epoch, number, _ in batches)
        consumed = {done: shares for done, shares in consumed.items() if done < first}  # what was lost
        for rank, epoch, number, ids in batches:
            consumed.setdefault(epoch * an_epoch + number, {})[rank] = ids
    problems = [] if sorted(consumed) == list(range(steps)) else [f"the steps {sorted(consumed)}"]
    for done, shares in consumed.items():
        order = epoch_order(job.recipe.seed, done // an_epoch, TRAIN)
        wanted = global_batch(order, done % an_epoch, job.recipe.batch_size)
        if [i for rank in sorted(shares) for i in shares[rank]] != wanted.tolist():
            problems.append(f"the samples of step {done}")
    return problems
