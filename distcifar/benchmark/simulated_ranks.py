"""What a thousand ranks ask of the plan, of the run directory and of its journal, asked by one process."""

import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from distcifar.cluster.hardware import samples_of
from distcifar.cluster.watchdog import Pulse, Sign, culprits, leave
from distcifar.data.plan import epoch_order, global_batch, share, steps_per_epoch
from distcifar.errors import RunError
from distcifar.tracking.journal import Journal, append_event, read_events
from distcifar.tracking.rows import epoch_rows, last_row
from distcifar.tracking.system import SystemLog
from distcifar.world import World

T = TypeVar("T")
Seconds = dict[str, float]  # of what is named

EPOCHS = 2
EPOCH_STEPS = 1000  # of the journal's run
REPORT_ROWS = 5
SAMPLE = {
    "host": "host-0", "cpu_percent": 99.1, "rss_bytes": 2**31, "node_cpu_percent": 45.2, "node_memory_bytes": 2**35,
    "node_memory_total_bytes": 2**38, "gpu": "NVIDIA H100 80GB HBM3", "gpu_memory_bytes": 2**34,
    "gpu_memory_total_bytes": 2**36, "gpu_percent": 97, "torch_peak_bytes": 2**33,
}  # fmt: skip


def timed(action: Callable[[], T]) -> tuple[T, float]:
    """What `action` returns, and this process's processor time for it."""
    begun = time.process_time()
    value = action()
    return value, time.process_time() - begun


def plan_cost(ranks: int, images: int, batch: int) -> Seconds:
    """Whole epochs of steps that are shared out. RunError unless each image is in exactly one share of one step."""
    ordering = cutting = 0.0
    steps = steps_per_epoch(images, batch, drop_last=False)
    for epoch in range(EPOCHS):
        order, seconds = timed(partial(epoch_order, 0, epoch, images))
        ordering += seconds
        taken = np.zeros(images, dtype=np.int64)
        for step in range(steps):
            parts, seconds = timed(partial(shares, order, step, batch, ranks))
            cutting += seconds
            for part in parts:
                taken[part] += 1
        require_once(taken, ranks)
    return {
        "an epoch's order, on each rank": ordering / EPOCHS,
        "a rank's share of a step": cutting / (EPOCHS * steps) / ranks,
    }


def shares(order: NDArray[np.int64], step: int, batch: int, ranks: int) -> list[NDArray[np.int64]]:
    """Each rank's part of the global batch of `step`."""
    ids = global_batch(order, step, batch)
    return [ids[share(len(ids), rank, ranks)] for rank in range(ranks)]


def require_once(taken: NDArray[np.int64], ranks: int) -> None:
    """Raises RunError unless each image was taken once."""
    wrong = int((taken != 1).sum())
    require(not wrong, f"{wrong} images of an epoch are not in exactly one share on {ranks} ranks")


def sign_cost(ranks: int, run: Path) -> Seconds:
    """What ranks leave in a run directory, and what it takes to read all of it. The last rank is behind."""
    run.mkdir(parents=True)
    _, leaving = timed(lambda: _all_leave(run, ranks))
    samples, reading = timed(lambda: samples_of(run, ranks))
    log, pulse = SystemLog(run), Pulse(run, World(0, ranks), 0.0)
    _, writing = timed(lambda: log.append(20, samples))
    behind, looking = timed(lambda: culprits({}, pulse.signs()))
    require([sign.rank for sign in behind] == [ranks - 1], f"{len(behind)} of {ranks} ranks are said to be behind")
    require(len(samples) == ranks, f"{len(samples)} samples of {ranks} ranks are read")
    return {
        "a rank leaves its sign and its sample": leaving / ranks,
        "the primary reads all samples": reading,
        "and writes them to system.jsonl": writing,
        "a rank looks who is behind": looking,
    }


def _all_leave(run: Path, ranks: int) -> None:
    for rank in range(ranks):
        sign = Sign(rank, f"host-{rank // 8}", 1000 + rank, 7, 40 - (rank == ranks - 1), "step", 20)
        leave(run / "ranks" / f"{rank}.json", asdict(sign))
        leave(run / "ranks" / f"{rank}.hardware.json", SAMPLE)


def journal_cost(rows: int, run: Path) -> Seconds:
    """So many steps written down as a training does, then what a restart asks of them."""
    journal = Journal(run)
    _, writing = timed(lambda: _write_steps(journal, rows))
    last, finding = timed(lambda: last_row(run))
    epochs, reading = timed(lambda: epoch_rows(run))
    _, cutting = timed(lambda: journal.cut(step=rows - 10, epoch=(rows - 10) // EPOCH_STEPS))
    require(len(epochs) == rows // EPOCH_STEPS, f"{len(epochs)} epochs are read of {rows // EPOCH_STEPS}")
    kept = last_row(run)
    require((last or {}).get("step") == rows and (kept or {}).get("step") == rows - 10, f"{last} and {kept} are last")
    return {
        "a row is written": writing / rows,
        "the last row is found": finding,
        "the epochs' rows are read": reading,
        "cut back by ten steps": cutting,
    }


def _write_steps(journal: Journal, rows: int) -> None:
    for first in range(1, rows + 1, REPORT_ROWS):
        steps = range(first, min(first + REPORT_ROWS, rows + 1))
        journal.append([_step_row(step) for step in steps])
        for step in steps:
            if step % EPOCH_STEPS == 0:
                journal.append([_step_row(step) | {"kind": "epoch", "epoch": step // EPOCH_STEPS}])


def _step_row(step: int) -> dict[str, Any]:
    return {
        "kind": "step", "step": step, "epoch": step / EPOCH_STEPS, "train/loss": 2.3 / (1 + step / 1e4),
        "train/lr": 0.1 / 3, "train/grad_norm": 1 / 7, "perf/images_per_s": 123456.789, "perf/data_wait": 0.0123,
        "perf/memory_bytes": 2**33,
    }  # fmt: skip


def event_cost(count: int, run: Path) -> Seconds:
    """So many events, as ranks that hang or fail together leave them."""
    run.mkdir(parents=True)
    words = "no step for 300 s, held up by rank 999 on host-124 (process 1999, step at step 20)"
    _, writing = timed(lambda: [append_event(run, "hang", words, rank=rank) for rank in range(count)])
    events, reading = timed(lambda: read_events(run))
    require(len(events) == count, f"{len(events)} events are read of {count}")
    return {"all are written": writing, "all are read": reading}


def require(ok: bool, found: str) -> None:  # noqa: FBT001
    """What is timed must be right, too."""
    if not ok:
        raise RunError(found, "A simulation is judged by what it leaves", "This is a bug: report it")
