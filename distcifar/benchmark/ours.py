"""Our engine by the rules that peers are measured by, in a process of its own: python -m distcifar.benchmark.ours FILE.

Also one of several ranks without Ray, for `scaling` and `growth`, which start as many processes.
"""

import json
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from distcifar.config import Recipe, RunSpec, from_dict, replace_at
from distcifar.data.build import OpenData, open_data
from distcifar.models import count_parameters
from distcifar.training.allocator import keep_freed_memory
from distcifar.training.build import build_state, first_images
from distcifar.training.engine import fit
from distcifar.training.lean import leave_compiler_out
from distcifar.training.precision import resolve_precision
from distcifar.training.reports import REPORT_SECONDS, EpochReport, FitOptions, Pace, Report
from distcifar.training.state import TrainState
from distcifar.training.summary import summarise
from distcifar.world import World

WARM_UP_STEPS = 3
REDUCE_ROUNDS = 7


@dataclass(frozen=True)
class Order:
    """What this process is to do."""

    recipe: Recipe
    folder: str  # of the prepared betons
    spec: RunSpec
    threads: int
    rank: int = 0
    size: int = 1
    rendezvous: str = ""  # a file that the ranks meet at
    steps: int = 0  # stop after so many (0: train to the end and measure the test images)
    reduce_bytes: tuple[int, ...] = ()  # also time all-reduces of these sizes


@dataclass
class Clock:
    """When the steps of each epoch were done."""

    epoch_seconds: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    begun: float = field(default_factory=time.perf_counter)
    last: float = field(default_factory=time.perf_counter)

    def note(self, report: Report) -> None:
        """Takes the time of a report."""
        now = time.perf_counter()
        if isinstance(report, EpochReport):
            self.epoch_seconds.append(self.last - self.begun)
            self.begun = now
        elif report.rows:
            self.step_seconds += [(now - self.last) / len(report.rows)] * len(report.rows)
        self.last = now


def main(path: str) -> None:
    """Prints the line."""
    print(json.dumps(measure(from_dict(Order, json.loads(Path(path).read_text())))))


def measure(order: Order) -> dict[str, Any]:
    """Warms up on a state that is thrown away, then trains and evaluates: what docs/benchmarks.md calls the line."""
    world = _join(order)
    try:
        data = open_data(order.recipe, Path(order.folder), world, mode=order.spec.loader, threads=order.threads)
        warm = _state(order, data, world)
        # What is timed later computes as this did: precision "auto" is decided once.
        order = replace_at(order, "recipe.precision", warm.progress.precision)
        for _ in _first_steps(_reports(order, warm, data, world), WARM_UP_STEPS):
            pass
        del warm
        return _timed(order, data, world)
    finally:
        if world.size > 1:
            dist.destroy_process_group()


def _timed(order: Order, data: OpenData, world: World) -> dict[str, Any]:
    state = _state(order, data, world)
    parameters = count_parameters(state.model)[0]
    begun, clock = time.perf_counter(), Clock()
    for report in _first_steps(_reports(order, state, data, world), order.steps):
        clock.note(report)
    result = None if order.steps else summarise(state, data, world)
    seconds = time.perf_counter() - begun
    return {
        "peer": "distcifar",
        "seconds": seconds,
        "epochs": max(1, len(clock.epoch_seconds)),
        "images": data.loaders.train.store.num_samples,
        "accuracy": result.summary["test_accuracy"] if result else 0.0,
        "epoch_seconds": clock.epoch_seconds or [seconds],
        "step_seconds": statistics.median(clock.step_seconds),
        "precision": state.progress.precision,
        "loader": data.mode,
        "parameters": parameters,
        "reduce_seconds": {size: _reduce_seconds(size, world) for size in order.reduce_bytes},
    }


def _join(order: Order) -> World:
    """This rank, with threads and memory set as a worker of a run sets them."""
    torch.set_num_threads(order.threads)
    on_gpu = order.spec.device != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda", order.rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True
    else:
        keep_freed_memory()
    leave_compiler_out()
    if order.size > 1:
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            init_method=f"file://{order.rendezvous}",
            rank=order.rank,
            world_size=order.size,
            timeout=timedelta(seconds=120),
        )
    return World(order.rank, order.size, device)


def _state(order: Order, data: OpenData, world: World) -> TrainState:
    state = build_state(order.recipe, data, "benchmark", world)
    images = first_images(data, order.recipe.batch_size)
    state.set_precision(resolve_precision(order.recipe.precision, state.model, images, world))
    return state


def _reports(order: Order, state: TrainState, data: OpenData, world: World) -> Iterator[Report]:
    options = FitOptions(pace=Pace(REPORT_SECONDS), compile=order.spec.compile == "on")
    return fit(order.recipe, state, data.loaders, world, options)


def _first_steps(reports: Iterator[Report], steps: int) -> Iterator[Report]:
    """The reports until `steps` steps are done (0: all of them)."""
    done = 0
    with closing(reports):  # type: ignore[type-var]  # a generator, whose data path is to end with it
        for report in reports:
            yield report
            done += 0 if isinstance(report, EpochReport) else len(report.rows)
            if steps and done >= steps:
                return


def _reduce_seconds(size: int, world: World) -> float:
    """The median time of summing `size` bytes over all ranks."""
    values = torch.zeros(max(1, size // 4), device=world.device)
    times = []
    for _ in range(REDUCE_ROUNDS + 1):
        world.barrier()
        begun = time.perf_counter()
        world.sum(values)
        if world.device.type == "cuda":
            torch.cuda.synchronize(world.device)
        times.append(time.perf_counter() - begun)
    return statistics.median(times[1:])


if __name__ == "__main__":
    main(sys.argv[1])
