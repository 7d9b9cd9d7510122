"""What runs on each rank: the composition root. Every object of a training is built here, top to bottom."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch

from distcifar.cluster.recorder import Listener, NoRecorder, Recorder, RunRecorder
from distcifar.cluster.stopping import StopRequest
from distcifar.config import Recipe, RunSpec
from distcifar.data.build import open_data
from distcifar.errors import DistcifarError
from distcifar.training.build import build_state
from distcifar.training.checkpoint import newest_good
from distcifar.training.engine import fit
from distcifar.training.reports import EpochReport, FitOptions
from distcifar.training.summary import summarise
from distcifar.world import World

GPU_REPORT_STEPS = 20  # a report makes the host wait for the GPU


@dataclass(frozen=True)
class Job:
    """All that a worker is told."""

    recipe: Recipe
    spec: RunSpec
    folder: Path  # the run directory, absolute, shared by all workers
    data: Path  # the folder of the prepared betons, absolute
    data_digest: str


def train_worker(config: dict[str, Any]) -> dict[str, Any]:
    """Trains on this rank: {"summary": ...}, {"stopped": step}, or {"error": DistcifarError}.

    config: {"job": Job, "listen": Listener}. What a user can mend is returned, not raised: Ray would restart
    the workers for it and print its own traceback.
    """
    world = join_world(config["job"].spec)
    try:
        return _train(config["job"], config["listen"], world)
    except DistcifarError as error:
        return {"error": error}


def join_world(spec: RunSpec) -> World:
    """This rank's place and device, with torch's threads and determinism set as `spec` says."""
    context = ray.train.get_context()
    ranks_here = context.get_local_world_size()
    cores = spec.cpus_per_worker or max(1, len(os.sched_getaffinity(0)) // ranks_here)
    torch.set_num_threads(cores)
    torch.use_deterministic_algorithms(spec.deterministic)
    torch.backends.cudnn.benchmark = not spec.deterministic
    device = torch.device("cpu") if spec.device == "cpu" else ray.train.torch.get_device()
    return World(context.get_world_rank(), context.get_world_size(), device)


def _train(job: Job, listen: Listener, world: World) -> dict[str, Any]:
    spec = job.spec
    threads = spec.loader_threads or torch.get_num_threads()
    data = open_data(job.recipe, job.data, world, mode=spec.loader, threads=threads)
    state = build_state(job.recipe, data, job.data_digest, world)
    checkpoint, damaged = newest_good(job.folder / "checkpoints")
    if checkpoint is not None:
        checkpoint.restore(state)
    recorder: Recorder = NoRecorder()
    if world.is_primary:
        recorder = RunRecorder(job.folder, spec, state, data, listen)
        recorder.begin(world.size, damaged)
    options = FitOptions(
        report_steps=GPU_REPORT_STEPS if world.device.type == "cuda" else 1,
        checkpoint_steps=spec.checkpoint_steps,
        should_stop=StopRequest(job.folder).made,
        compile=spec.compile,
    )
    for report in fit(job.recipe, state, data.loaders, world, options):
        recorder.record(report)
        if isinstance(report, EpochReport):
            ray.train.report(report.metrics())
        elif report.stopping:
            return {"stopped": state.progress.step}
    summary = summarise(state, data, world)
    recorder.finish(summary)
    return {"summary": summary}
