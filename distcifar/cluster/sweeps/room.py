"""How many trials there is room for at once; what is lacking is told before anything is started."""

import os
from dataclasses import dataclass

from distcifar.config import RunSpec
from distcifar.config.sweep import SweepSpec
from distcifar.errors import ResourceError

WAITING = ("hyperband", "pbt")  # schedulers that pause trials until others are as far


@dataclass(frozen=True)
class Room:
    """What each trial takes of the cluster, and how many there are at once."""

    cpus: int  # cores of each of its processes
    gpus: float  # share of a GPU of each process
    concurrent: int
    claim: float  # CPUs that Ray keeps for a trial: so many that there are no more trials at once


def embedded_cpus(spec: SweepSpec) -> int:
    """The CPUs that a cluster of this machine has: its cores. Raises ResourceError where a trial needs more."""
    cores, needed = len(os.sched_getaffinity(0)), spec.workers_per_trial * max(1, spec.cpus_per_trial)
    if needed > cores:
        raise ResourceError(
            f"A trial of {spec.workers_per_trial} process(es) with {max(1, spec.cpus_per_trial)} core(s) each needs"
            f" {needed} cores, and this machine has {cores}",
            "The processes of a trial run at once",
            "Lower --workers-per-trial or --cpus-per-trial, or give --address HOST:PORT of a larger cluster",
        )
    return cores


def room_for(spec: SweepSpec, run: RunSpec, have: dict[str, float]) -> Room:
    """The room on a cluster with resources `have`. Raises ResourceError where not one trial fits, with the remedy."""
    cpus, cards = have.get("CPU", 0.0), have.get("GPU", 0.0) if run.device != "cpu" else 0.0
    if run.device == "cuda" and not cards:
        raise ResourceError("The cluster has no GPU", "--device cuda needs one", "Use --device auto or cpu")
    gpus = spec.gpus_per_trial if cards else 0.0
    each = spec.cpus_per_trial or (max(1, int(cpus * gpus / cards)) if gpus else 1)
    fitting = int(cpus // (each * spec.workers_per_trial))
    if gpus:
        fitting = min(fitting, int(cards / (gpus * spec.workers_per_trial) + 1e-6))
    wanted = spec.concurrent or fitting
    if not fitting or wanted > fitting:
        raise ResourceError(
            f"{max(1, wanted)} trial(s) at once need {max(1, wanted) * spec.workers_per_trial * each} CPUs"
            + (f" and {max(1, wanted) * spec.workers_per_trial * gpus:g} GPUs" if gpus else "")
            + f", and the cluster has {cpus:g} CPUs" + (f" and {cards:g} GPUs" if cards else ""),
            "All processes of all trials at once have their own cores",
            f"Use --concurrent {fitting}" if fitting else "Lower --cpus-per-trial, --gpus-per-trial or the workers",
        )  # fmt: skip
    if run.address and spec.scheduler in WAITING and spec.concurrent:
        raise ResourceError(
            f"concurrent is {spec.concurrent} with {spec.scheduler} on a running cluster",
            f"{spec.scheduler} pauses trials, which Ray does not count as running there",
            "Leave --concurrent out, or set --cpus-per-trial",
        )
    claim = cpus / wanted if not run.address and not gpus else each * spec.workers_per_trial
    return Room(each, gpus, wanted, int(claim * 1000) / 1000)
