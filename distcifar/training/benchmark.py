"""What checkpoints cost the training that they interrupt."""

import statistics
import time
from pathlib import Path

from distcifar.config import Recipe
from distcifar.data.build import OpenData
from distcifar.training.build import build_state
from distcifar.training.checkpoint import capture
from distcifar.training.engine import fit
from distcifar.training.saving import CheckpointWriter
from distcifar.world import World


def measure_saving(recipe: Recipe, data: OpenData, folder: Path, *, rounds: int, steps: int) -> dict[str, float]:
    """Trains blocks of `steps` steps, by turns with one checkpoint and without; medians in seconds.

    with, without: a block. standstill: what the loop waits for the copy of the state. megabytes: the checkpoint's
    size. The first round is not counted.
    """
    world = World()
    state = build_state(recipe, data, "benchmark", world)
    state.set_precision("bf16" if recipe.precision == "auto" else recipe.precision)
    reports = fit(recipe, state, data.loaders, world)
    writer = CheckpointWriter(folder, keep=1, before=lambda: None)
    times: dict[str, list[float]] = {"without": [], "with": [], "standstill": []}
    for _ in range(rounds + 1):
        for kind in ("without", "with"):
            start = time.perf_counter()
            if kind == "with":
                snapshot = capture(state, {})
                writer.submit(snapshot, ())
                times["standstill"].append(time.perf_counter() - start)
            for _ in range(steps):
                next(reports)
            times[kind].append(time.perf_counter() - start)
            writer.drain()  # it is done long before, or the block was too short to tell anything
    writer.close()
    return {name: statistics.median(found[1:]) for name, found in times.items()} | {
        "megabytes": snapshot.size_bytes / 1e6
    }
