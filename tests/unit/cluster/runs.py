"""Whole runs on `small_data` in a second: `jobs/train.py` as typed, but without Ray and without data files."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from distcifar.cluster import launch as launching
from distcifar.cluster import rank, stopping
from distcifar.cluster.job import Announce, Job, Listener
from distcifar.cluster.launch import RunResult, launch
from distcifar.cluster.recorder import silence
from distcifar.config import OptimConfig, Recipe, RunSpec
from distcifar.data.build import OpenData
from distcifar.data.loader import Batch
from distcifar.tracking.journal import read_events, read_rows
from distcifar.training import engine
from distcifar.training.checkpoint import (
    Checkpoint,
    Snapshot,
    checkpoint_name,
    load_checkpoint,
    newest_good,
    save_checkpoint,
)
from distcifar.training.reports import FitOptions
from distcifar.training.saving import CheckpointWriter
from distcifar.training.state import TrainState
from distcifar.training.step import StepResult, train_step
from distcifar.world import World
from tests.support import CLOCK_FIELDS, NORM_CNN, differing_tensors, fresh, small_data, small_recipe, train

DATA = "d" * 64


class Killed(BaseException):
    """What no handler of the program catches, as it catches no kill -9."""


def spec_of(runs: Path, name: str, **words: Any) -> RunSpec:
    quiet = {"device": "cpu", "hang_seconds": 0, "checkpoint_minutes": 0, "wandb": "disabled"}
    return RunSpec(**{"runs": str(runs), "name": name, **quiet, **words})


def typed(
    recipe: Recipe, runs: Path, name: str = "run", *, data: str = DATA, listen: Listener = silence, **words: Any
) -> RunResult:
    """What a command with these `words` does."""
    with (
        patch.object(launching, "shared_data", lambda *_, **__: SimpleNamespace(folder=runs, digest=data)),
        patch.object(launching, "collect_facts", lambda spec, folder, digest: {"data_digest": digest}),
        patch.object(launching, "_fitting", lambda spec: _fit),
        patch.object(stopping, "POLL_SECONDS", 0.0),  # a wish to stop is seen at the next step
    ):
        return launch(recipe, spec_of(runs, name, **words), listen=listen, announce=print)


def _fit(job: Job, listen: Listener, announce: Announce) -> dict[str, Any]:
    return on_rank(World(), job, listen=listen)


def on_rank(world: World, job: Job, listen: Listener = silence, **sizes: int) -> dict[str, Any]:
    """`train_rank` on `small_data`."""

    def data(recipe: Recipe, _: Path, world: World, **__: Any) -> OpenData:
        return small_data(recipe, world, **sizes)

    with patch.object(rank, "open_data", data), patch.object(rank, "REPORT_SECONDS", 0.0):  # a report at each step
        return rank.train_rank(job, world, listen=listen, after_epoch=lambda metrics: None)


@contextmanager
def every_checkpoint() -> Iterator[list[int]]:
    """The steps of all checkpoints, each of which is waited for: none is left out for a newer one."""
    steps: list[int] = []
    submit = CheckpointWriter.submit

    def submit_and_wait(writer: CheckpointWriter, snapshot: Snapshot, best_steps: tuple[int, ...]) -> None:
        steps.append(snapshot.step)
        submit(writer, snapshot, best_steps)
        writer.drain()

    with patch.object(CheckpointWriter, "submit", submit_and_wait):
        yield steps


def killed_at(step: int, kind: str = "step") -> Listener:
    """A listener with which the run dies once the row of `step` is written."""

    def listen(row: dict[str, Any]) -> None:
        if row["kind"] == kind and row.get("step") == step:
            raise Killed

    return listen


def stopped_at(folder: Path, step: int) -> Listener:
    """A listener that asks for a stop at `step`."""

    def listen(row: dict[str, Any]) -> None:
        if row.get("step") == step:
            (folder / "stop").touch()

    return listen


def nan_at(step: int, rollbacks: int, rank: int = 0) -> Callable[..., StepResult]:
    """train_step whose loss at `step` is NaN on `rank` until the run has gone back `rollbacks` times."""

    def result(net: Any, state: TrainState, recipe: Recipe, batch: Batch, world: World, **words: Any) -> StepResult:
        found = train_step(net, state, recipe, batch, world, **words)
        ill = state.progress.step + 1 == step and state.progress.rollbacks < rollbacks and world.rank == rank
        return replace(found, loss=found.loss * float("nan")) if ill else found

    return result


def evaluation_interrupted(world: World, folder: Path, batch: int, **sizes: int) -> dict[str, Any]:
    """What comes of a wish of the last rank to stop at `batch` of an evaluation, and of going on afterwards."""
    whole, data = fresh(INTERRUPTED, world, **sizes)
    rows = train(whole, data, world)
    state, data = fresh(INTERRUPTED, world, **sizes)
    wishes: list[int] = []

    def on_stage(stage: str, number: int) -> None:
        if stage == "evaluate" and number == batch and world.rank == world.size - 1:
            wishes.append(number)

    first = train(state, data, world, FitOptions(should_stop=lambda: bool(wishes), on_stage=on_stage))
    stood = (state.progress.step, state.progress.epoch, state.progress.epoch_step)
    if world.is_primary:
        save_checkpoint(folder, state, {})
    world.barrier()
    again, data = fresh(INTERRUPTED, world, **sizes)
    load_checkpoint(folder / checkpoint_name(state.progress.step)).restore(again)
    rest = train(again, data, world)
    return {
        "stopped at": stood,
        "rows": first + rest == rows,
        "differing": sorted(set(differing_tensors(again.tensors(), whole.tensors())) - {"tally"}),
        "chosen": differing_tensors(again.chosen_weights(), whole.chosen_weights()),
    }


INTERRUPTED = small_recipe(model=NORM_CNN, ema_decay=0.6, optim=OptimConfig(lr=0.05, momentum=0.9))
ROLLING = small_recipe(epochs=3, on_divergence="rollback", optim=OptimConfig(lr=0.1, momentum=0.9))
EVALUATIONS = {
    "both ranks have two batches": (1, {"validation": 24, "eval_batch": 10}),
    "one rank has a batch more": (0, {"validation": 3, "eval_batch": 1}),
    "one rank has no sample": (0, {"validation": 1, "eval_batch": 1}),
}


def on_two_ranks(world: World, folder: Path) -> dict[str, Any]:
    """What the tests of two ranks look at, in one start of processes."""
    job = Job(ROLLING, spec_of(folder, "rolled"), folder / "rolled", folder, DATA, "launch")
    job.folder.mkdir(exist_ok=True)
    with patch.object(engine, "train_step", nan_at(5, rollbacks=1, rank=1)):
        rolled = on_rank(world, job)
    stopping = replace(job, recipe=replace(ROLLING, on_divergence="stop"), folder=folder / "ended")
    stopping.folder.mkdir(exist_ok=True)
    with patch.object(engine, "train_step", nan_at(5, rollbacks=9, rank=1)):
        ended = on_rank(world, stopping)
    found = {
        name: evaluation_interrupted(world, folder / name, batch, **sizes)
        for name, (batch, sizes) in EVALUATIONS.items()
    }
    return {"rolled": rolled, "ended": str(ended["error"]), "interrupted": found}


def rows_in(folder: Path) -> list[dict[str, Any]]:
    """All metric rows without clocks."""
    rows = read_rows(folder)
    return [{k: v for k, v in row.items() if k not in CLOCK_FIELDS} for row in rows]


def kinds(folder: Path) -> list[str]:
    """Of all events, in order."""
    return [event["kind"] for event in read_events(folder)]


def saved(folder: Path) -> Checkpoint:
    """The newest checkpoint, which is good."""
    checkpoint, damaged = newest_good(folder / "checkpoints")
    assert checkpoint is not None
    assert not damaged
    return checkpoint


def progress_of(folder: Path) -> dict[str, Any]:
    return {k: v for k, v in saved(folder).scalars["progress"].items() if k != "seconds"}


def assert_same_end(folder: Path, other: Path) -> None:
    """Bitwise the same training from its first row to its result."""
    assert rows_in(folder) == rows_in(other)
    assert progress_of(folder) == progress_of(other)
    assert differing_tensors(saved(folder).tensors, saved(other).tensors) == []
    assert differing_tensors(saved(folder).chosen, saved(other).chosen) == []
    clocks = ("seconds", "images_per_s")
    results = [json.loads((run / "summary.json").read_text()) for run in (folder, other)]
    assert [{k: v for k, v in r.items() if k not in clocks} for r in results[:1]] == [
        {k: v for k, v in r.items() if k not in clocks} for r in results[1:]
    ]
