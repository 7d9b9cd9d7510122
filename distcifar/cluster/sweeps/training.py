"""The training that a trial's epochs come from: in this process, or of several workers on Ray."""

import queue
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from distcifar.cluster.aside import Answer, answer_of
from distcifar.cluster.facts import collect_facts
from distcifar.cluster.job import Job
from distcifar.cluster.rank import Epochs, rank_epochs
from distcifar.cluster.recorder import silence
from distcifar.cluster.remote import fit_workers, own_error
from distcifar.cluster.run_folder import claim_run, only_launch
from distcifar.cluster.session import Workers
from distcifar.cluster.stopping import StopRequest
from distcifar.cluster.sweeps.gate import Gate
from distcifar.cluster.worker import set_up_torch
from distcifar.config import Recipe, RunSpec
from distcifar.data.build import OpenData, OpenStores, load, open_stores
from distcifar.errors import DistcifarError
from distcifar.sweep.folder import Sweep
from distcifar.tracking.journal import JournalFollower
from distcifar.training.checkpoint import checkpoint_name
from distcifar.world import World

FOLLOW_SECONDS = 0.05  # how often a trial of several workers looks for its epoch
LEAVE_SECONDS = 60.0  # for those workers to save and go


@dataclass
class KeptImages:
    """Reads a sweep's images once in a process; each trial has loaders of its own over them."""

    key: tuple[Any, ...] = ()
    opened: OpenStores | None = None

    def __call__(self, job: Job, world: World) -> OpenData:
        threads = job.spec.loader_threads or torch.get_num_threads()
        wanted = (job.data, job.spec.loader, threads, bool(job.recipe.data.validation))
        if self.opened is None or wanted != self.key:
            self.opened = job.opened_data(
                lambda folder: open_stores(folder, world, mode=wanted[1], threads=threads, validation=wanted[3])
            )
            self.key = wanted
        return load(self.opened, job.recipe, world)


@dataclass(frozen=True)
class Start:
    """What a trial's training is begun with."""

    sweep: Sweep
    run: str
    recipe: Recipe
    cpus: int  # cores of each of its processes
    measure: bool = False  # in the end the test images
    parent: Path | None = None  # the checkpoint that a new run is begun from

    @property
    def folder(self) -> Path:
        """The run directory."""
        return self.sweep.trials / self.run

    def spec(self) -> RunSpec:
        """How the run is trained: as the sweep's are, under its own name; a run that exists goes on."""
        sweep, begins = self.sweep, self.parent is not None and not (self.folder / "recipe.json").exists()
        return replace(
            sweep.run, name=self.run, runs=str(sweep.trials), group=sweep.folder.name, cpus_per_worker=self.cpus,
            workers=sweep.spec.workers_per_trial, checkpoint_epochs=1, overwrite=False,
            resume=str(self.parent) if begins else "auto", branch=begins,
        )  # fmt: skip


def epochs_of(start: Start, images: KeptImages) -> Epochs:
    """Claims the trial's run directory and trains: each epoch's metrics, and in the end what `rank_epochs` returns."""
    spec, folder = start.spec(), start.folder
    try:
        with only_launch(folder):
            claim_run(start.recipe, spec, folder, collect_facts(spec, start.sweep.data, start.sweep.data_digest))
            StopRequest(folder).clear()
            several = spec.workers > 1
            job = Job(
                start.recipe, spec, folder, start.sweep.data, start.sweep.data_digest, uuid.uuid4().hex[:8],
                measure=start.measure, gated=several,
            )  # fmt: skip
            return (yield from _on_ray(job, start.cpus) if several else _here(job, start.cpus, images))
    except DistcifarError as error:
        return {"error": error}


def _here(job: Job, cpus: int, images: KeptImages) -> Epochs:
    on_gpu = job.spec.device != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
    set_up_torch(job.spec, cpus, device)
    return (yield from rank_epochs(job, World(0, 1, device), listen=silence, opener=images))


def _on_ray(job: Job, cpus: int) -> Epochs:
    """Several workers through the launch code of jobs/train.py; they wait at each epoch's end until it is asked for."""
    gpu = job.spec.device != "cpu" and torch.cuda.is_available()
    gate, follower = Gate(job.folder), JournalFollower(job.folder)
    gate.allow(0)
    answer = answer_of(lambda: fit_workers(job, Workers(job.spec.workers, cpus, gpu)))
    try:
        for row in _epoch_rows(job, follower, answer):
            yield row
            gate.allow(row["epoch"] + 1)
    except GeneratorExit:
        StopRequest(job.folder).make("search")
        with suppress(queue.Empty):
            answer.get(timeout=LEAVE_SECONDS)
        raise
    result = answer.get()
    if isinstance(result, BaseException):
        raise own_error(result)
    return dict(result)


def _epoch_rows(job: Job, follower: JournalFollower, answer: Answer) -> Iterator[dict[str, Any]]:
    """The rows of epochs as they come, each with its checkpoint on the disk, until the workers have ended."""
    while True:
        ended = not answer.empty()
        for row in follower.new_rows():
            if row["kind"] == "epoch":
                sealed = job.folder / "checkpoints" / checkpoint_name(row["step"])
                while not sealed.exists() and answer.empty():
                    time.sleep(FOLLOW_SECONDS)
                yield row
        if ended:
            return
        time.sleep(FOLLOW_SECONDS)
