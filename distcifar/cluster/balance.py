"""Which part of each batch a rank takes: equal ones, or by speed where cards of several kinds train together.

What was measured is kept in the run directory's balance.json: a run that goes on there with the same devices takes the
same parts, without which it would not end with the same bits.
"""

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from distcifar.cluster.job import Job
from distcifar.cluster.memory import known_microbatch
from distcifar.cluster.recorder import Recorder
from distcifar.data.build import OpenData
from distcifar.data.plan import share
from distcifar.training.balance import balanced, measured_costs, slowest_seconds
from distcifar.training.state import TrainState
from distcifar.world import World

NOTE = "balance"  # .json
WORTH = 0.95  # of the time with equal parts, that others must not exceed: measured times are off by some percent
LISTED = 8  # ranks whose parts are told


def by_speed(job: Job, world: World, data: OpenData, state: TrainState, recorder: Recorder) -> OpenData:
    """`data` with parts by the ranks' speed, where the run is to have such; the user is told. A collective."""
    names = world.each(device_name(world.device))
    if not wants_balance(job.spec.balance, names):
        return data
    batch = job.recipe.batch_size
    hosts = world.each(platform.node())
    devices = [f"{name} on {host}" for name, host in zip(names, hosts, strict=True)]
    parts = world.first(known_parts(job.folder, devices, batch))
    expected = ""
    if parts is None:
        precision, limit = state.progress.precision, known_microbatch(job)
        costs = measured_costs(job.recipe, data, precision, world, microbatch=limit)
        equal = tuple(len(range(batch)[share(batch, rank, world.size)]) for rank in range(world.size))
        parts = balanced(costs, batch)
        seconds, before = slowest_seconds(costs, parts), slowest_seconds(costs, equal)
        if seconds > WORTH * before:
            parts, expected = equal, "; all are about as fast"
        else:
            expected = f"; the slowest computes for {1000 * seconds:.0f} ms instead of {1000 * before:.0f} ms"
        recorder.write(NOTE, {"devices": devices, "parts": parts, "costs": [asdict(cost) for cost in costs]})
    recorder.tell("balance", words(devices, parts) + expected, parts=parts)
    return replace(data, loaders=data.loaders.weighted(parts))


def wants_balance(asked: str, names: Sequence[str]) -> bool:
    """Whether ranks on devices of these names get parts by speed ("auto": where the names differ)."""
    return len(names) > 1 and (asked == "on" or (asked == "auto" and len({*names}) > 1))


def known_parts(folder: Path, devices: list[str], batch: int) -> tuple[int, ...] | None:
    """What was measured in this run for these devices, in this order."""
    try:
        note = json.loads((folder / f"{NOTE}.json").read_text())
        parts = tuple(int(part) for part in note["parts"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None  # not there, or damaged: it is measured again
    return parts if note["devices"] == devices and sum(parts) == batch else None


def words(devices: Sequence[str], parts: Sequence[int]) -> str:
    """Each rank's part of a batch."""
    each = [f"rank {rank} ({device}) {part}" for rank, (device, part) in enumerate(zip(devices, parts, strict=True))]
    more = [f"{len(each) - LISTED} more"] if len(each) > LISTED else []
    return f"of the {sum(parts)} images of a step: {', '.join(each[:LISTED] + more)}"


def device_name(device: torch.device) -> str:
    """The model of a GPU; of a CPU just that: some model's speed says little about its cores' load."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
