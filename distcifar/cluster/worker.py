"""A rank as Ray Train starts it: its place in the world, its device, and Ray's epoch reports."""

import os
from dataclasses import replace
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray._private.ray_constants import LOG_PREFIX_ACTOR_NAME

from distcifar.cluster.rank import train_rank
from distcifar.cluster.stored.copies import own_copy
from distcifar.cluster.sweeps.gate import Gate
from distcifar.config import RunSpec
from distcifar.errors import DistcifarError
from distcifar.training.allocator import keep_freed_memory
from distcifar.training.lean import leave_compiler_out
from distcifar.world import World


def train_worker(config: dict[str, Any]) -> dict[str, Any]:
    """`train_rank` for Ray; config: {"job": Job, "listen": Listener}.

    A mistake comes back as {"error": DistcifarError}: Ray would restart the workers for what is raised.
    """
    job = config["job"]
    world = join_world(job.spec)
    if job.spec.verbose:
        sign_lines(world.rank)
    job = replace(job, startup=job.startup.ended("workers"))

    def after_epoch(metrics: dict[str, float]) -> None:
        ray.train.report(metrics)
        if job.gated:
            Gate(job.folder).wait(int(metrics["epoch"]))

    try:
        with own_copy(job, world) as job:
            return train_rank(job, world, listen=config["listen"], after_epoch=after_epoch)
    except DistcifarError as error:  # of the storage of that copy
        return {"error": error}


def join_world(spec: RunSpec) -> World:
    """This rank's place and device, with torch's threads and determinism set as `spec` says."""
    context = ray.train.get_context()
    cores = spec.cpus_per_worker or max(1, len(os.sched_getaffinity(0)) // context.get_local_world_size())
    device = torch.device("cpu") if spec.device == "cpu" else ray.train.torch.get_device()
    set_up_torch(spec, cores, device)
    return World(context.get_world_rank(), context.get_world_size(), device)


def sign_lines(rank: int) -> None:
    """What this process prints is followed as "(rank N pid=..., ip=...)" and not as "(RayTrainWorker ...)".

    Ray's log monitor takes the name from such a line in the process's own output (ray_constants.py).
    """
    for stream in (1, 2):
        os.write(stream, f"\n{LOG_PREFIX_ACTOR_NAME}rank {rank}\n".encode())


def set_up_torch(spec: RunSpec, cores: int, device: torch.device) -> None:
    """Torch's threads, determinism and memory, as `spec` says; in the thread that trains."""
    torch.set_num_threads(cores)
    if spec.deterministic:
        torch.use_deterministic_algorithms(mode=True)  # imports the compiler: five seconds on two cores
        # Filled memory would cost 2 to 7 % of a step on a CPU, and nothing here reads what was not written.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not spec.deterministic
    if device.type == "cpu":
        keep_freed_memory()
    leave_compiler_out()
