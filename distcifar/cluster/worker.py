"""What runs on each rank: the composition root. Every object of a training is built here, top to bottom."""

import os
from typing import Any

import ray.train
import ray.train.torch
import torch

from distcifar.cluster.job import Job, Listener
from distcifar.cluster.recorder import NoRecorder, Recorder, RunRecorder
from distcifar.cluster.stopping import StopRequest
from distcifar.config import RunSpec
from distcifar.data.build import OpenData, open_data
from distcifar.errors import CheckpointError, DistcifarError, DivergenceError
from distcifar.training.allocator import keep_freed_memory
from distcifar.training.build import build_state, first_images
from distcifar.training.checkpoint import newest_good
from distcifar.training.engine import fit
from distcifar.training.lean import leave_compiler_out
from distcifar.training.precision import resolve_precision
from distcifar.training.reports import EpochReport, FitOptions
from distcifar.training.state import TrainState
from distcifar.training.summary import summarise
from distcifar.world import World

GPU_REPORT_STEPS = 20  # a report makes the host wait for the GPU


def train_worker(config: dict[str, Any]) -> dict[str, Any]:
    """Trains on this rank: {"summary": ...}, {"stopped": step}, or {"error": DistcifarError}.

    config: {"job": Job, "listen": Listener}. A mistake that is found before the first step, and diverged
    training, are returned by all ranks alike: Ray would restart the workers for what is raised.
    """
    job: Job = config["job"]
    world = join_world(job.spec)
    problem: DistcifarError | None = None
    try:
        opened = _open(job, world)
    except DistcifarError as error:
        problem = error
    problem = world.first(problem)
    if problem is not None:
        return {"error": problem}
    try:
        return _train(job, config["listen"], world, *opened)
    except DivergenceError as error:
        return {"error": error}


def join_world(spec: RunSpec) -> World:
    """This rank's place and device, with torch's threads and determinism set as `spec` says."""
    context = ray.train.get_context()
    ranks_here = context.get_local_world_size()
    cores = spec.cpus_per_worker or max(1, len(os.sched_getaffinity(0)) // ranks_here)
    torch.set_num_threads(cores)
    if spec.deterministic:
        torch.use_deterministic_algorithms(mode=True)  # imports the compiler: five seconds on two cores
    torch.backends.cudnn.benchmark = not spec.deterministic
    device = torch.device("cpu") if spec.device == "cpu" else ray.train.torch.get_device()
    if device.type == "cpu":
        keep_freed_memory()
    if not spec.compile:
        leave_compiler_out()
    return World(context.get_world_rank(), context.get_world_size(), device)


Opened = tuple[OpenData, TrainState, list[CheckpointError]]


def _open(job: Job, world: World) -> Opened:
    """Data and state from the newest good checkpoint, and what was wrong with newer ones. No collectives."""
    threads = job.spec.loader_threads or torch.get_num_threads()
    data = open_data(job.recipe, job.data, world, mode=job.spec.loader, threads=threads)
    state = build_state(job.recipe, data, job.data_digest, world)
    checkpoint, damaged = newest_good(job.folder / "checkpoints")
    if checkpoint is not None:
        checkpoint.restore(state)
    return data, state, damaged


def _train(
    job: Job,
    listen: Listener,
    world: World,
    data: OpenData,
    state: TrainState,
    damaged: list[CheckpointError],
) -> dict[str, Any]:
    if state.progress.step == 0:
        images = first_images(data, job.recipe.batch_size)
        state.set_precision(resolve_precision(job.recipe.precision, state.model, images, world))
    recorder: Recorder = NoRecorder()
    if world.is_primary:
        recorder = RunRecorder(job.folder, job.spec, state, data, listen)
        recorder.begin(world.size, damaged)
    options = FitOptions(
        report_steps=GPU_REPORT_STEPS if world.device.type == "cuda" else 1,
        checkpoint_steps=job.spec.checkpoint_steps,
        should_stop=StopRequest(job.folder).made,
        compile=job.spec.compile,
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
