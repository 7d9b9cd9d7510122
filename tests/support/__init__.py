"""Small nets on small synthetic images: what drives the engine in tests, without Ray, files or downloads."""

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from multiprocessing import connection
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from distcifar.config import AugmentConfig, DataConfig, ModelConfig, OptimConfig, Recipe
from distcifar.data.build import OpenData
from distcifar.data.loader import EvalLoader, Loaders, TrainLoader
from distcifar.data.manifest import Manifest
from distcifar.data.pixels import PixelPipeline
from distcifar.data.stores import ResidentStore
from distcifar.errors import DivergenceError
from distcifar.training.build import build_state
from distcifar.training.checkpoint import checkpoint_name, load_checkpoint, save_checkpoint
from distcifar.training.engine import fit
from distcifar.training.reports import EpochReport, FitOptions, Report, Row
from distcifar.training.state import TrainState
from distcifar.world import World

CLASSES = 4
SIZE = 8
ONE = World()
CLOCK_FIELDS = ("perf/images_per_s", "perf/data_wait", "perf/memory_bytes", "seconds")

PLAIN_MLP = ModelConfig(name="mlp", hidden=(12,))  # neither BatchNorm nor dropout
DROPOUT_MLP = ModelConfig(name="mlp", hidden=(12, 10), dropout=0.4)
NORM_CNN = ModelConfig(name="cnn", layout=("6", "M", "8", "M"), hidden=(10,), dropout=0.3)


def small_recipe(**changes: Any) -> Recipe:
    """Two epochs of three steps (16, 16 and 8 images) on `small_data`, unless `changes` say otherwise."""
    fields: dict[str, Any] = {
        "name": "small",
        "epochs": 2,
        "batch_size": 16,
        "model": PLAIN_MLP,
        "data": DataConfig(validation=24),
        "optim": OptimConfig(lr=0.05),
    }
    return Recipe(**{**fields, **changes})


def small_images(count: int, seed: int, *, classes: int = CLASSES) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """uint8 [count, 8, 8, 3] and int64 [count]: noise around a brightness of each class; learnable, not at once."""
    rng = np.random.Generator(np.random.Philox(key=seed))
    labels = rng.integers(0, classes, count)
    level = 90 + 25 * labels[:, None, None, None]
    pixels = rng.normal(level, 60.0, (count, SIZE, SIZE, 3)).clip(0, 255)
    return pixels.astype(np.uint8), labels.astype(np.int64)


def small_data(
    recipe: Recipe, world: World = ONE, *, train: int = 40, validation: int = 24, test: int = 17, eval_batch: int = 10
) -> OpenData:
    """Resident loaders of one rank over small synthetic splits, as data.build.open_data makes them."""
    device = world.device
    pixels = PixelPipeline(recipe.augment, recipe.seed, SIZE, train, (0.5,) * 3, (0.25,) * 3, device)

    def split(count: int, seed: int) -> ResidentStore:
        return ResidentStore(*small_images(count, seed), device)

    loaders = Loaders(
        TrainLoader(
            split(train, 1), pixels, recipe.batch_size, recipe.seed, world, recipe.drop_last, recipe.total_epochs
        ),
        EvalLoader(split(validation, 2), pixels, eval_batch, world) if validation else None,
        EvalLoader(split(test, 3), pixels, eval_batch, world),
        CLASSES,
    )
    manifest = Manifest(
        split="train",
        data=recipe.data,
        source="synthetic",
        source_digest="0" * 64,
        class_names=tuple(f"class {i}" for i in range(CLASSES)),
        class_counts=(train // CLASSES,) * CLASSES,
        height=SIZE,
        width=SIZE,
        channels=3,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
    )
    return OpenData(loaders, manifest, "resident")


def fresh(recipe: Recipe, world: World = ONE, **sizes: int) -> tuple[TrainState, OpenData]:
    """A state before its first step, and its data."""
    data = small_data(recipe, world, **sizes)
    state = build_state(recipe, data, "data digest", world)
    state.set_precision(recipe.precision)
    return state, data


def reports(
    state: TrainState, data: OpenData, world: World = ONE, options: FitOptions | None = None
) -> Iterator[Report]:
    """What `fit` yields for `state`'s own recipe."""
    return fit(state.recipe, state, data.loaders, world, options)


def rows_of(report: Report) -> list[Row]:
    """The rows of a report without what a clock or the machine has put into them."""
    rows = [report.row] if isinstance(report, EpochReport) else report.rows
    return [{k: v for k, v in row.items() if k not in CLOCK_FIELDS} for row in rows]


def train(state: TrainState, data: OpenData, world: World = ONE, options: FitOptions | None = None) -> list[Row]:
    """Trains to the end; all rows, without clocks."""
    return [row for report in reports(state, data, world, options) for row in rows_of(report)]


def differing_tensors(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    """The names that only one has, or whose tensors are not bitwise equal."""
    both = a.keys() & b.keys()
    return sorted((a.keys() ^ b.keys()) | {name for name in both if not torch.equal(a[name], b[name])})


@contextmanager
def one_thread() -> Iterator[None]:
    """Tiny tensors on a busy machine: threads would wait for each other longer than they compute."""
    threads, numbas = torch.get_num_threads(), numba.get_num_threads()
    torch.set_num_threads(1)
    numba.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    numba.set_num_threads(numbas)


def rank_worlds(size: int) -> list[World]:
    """The worlds of all ranks, for tests that play them one after another in this process."""
    return [replace(ONE, rank=rank, size=size) for rank in range(size)]


def run_ranks(function: Callable[..., Any], size: int, folder: Path, *args: Any) -> list[Any]:
    """What `function(world, *args)` returns on each of `size` gloo ranks, processes of their own.

    They are forked from a server that has imported torch once and has no threads.
    """
    multiprocessing.set_forkserver_preload(["torch._dynamo", "distcifar.training.build", "distcifar.data.kernel"])
    context = torch.multiprocessing.get_context("forkserver")
    ranks = [context.Process(target=_rank, args=(function, rank, size, folder, args)) for rank in range(size)]
    for process in ranks:
        process.start()
    while any(process.is_alive() for process in ranks) and not any(process.exitcode for process in ranks):
        connection.wait([process.sentinel for process in ranks if process.is_alive()], timeout=1)
    for process in ranks:
        process.terminate()  # one has failed: its peers would wait for it
        process.join()
    assert [process.exitcode for process in ranks] == [0] * size
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=False) for rank in range(size)]


def _rank(function: Callable[..., Any], rank: int, size: int, folder: Path, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)  # ranks share the cores
    numba.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size, timeout=timedelta(seconds=120)
    )
    try:
        torch.save(function(World(rank, size), *args), folder / f"rank-{rank}.pt")
    finally:
        dist.destroy_process_group()


# Twenty-nine images in batches of 14, 14 and 1: at the last step all ranks but one have an empty share.
ALONE_STEPS = 4
SPLITS = {"train": 29, "validation": 24, "test": 17}
RANK_RECIPES = {
    "momentum": small_recipe(
        batch_size=14, label_smoothing=0.1, optim=OptimConfig(lr=0.1, momentum=0.9, clip_norm=0.5, weight_decay=1e-3)
    ),
    "mixed": small_recipe(
        batch_size=14,
        augment=AugmentConfig(crop_padding=1, flip="random", mixup=0.5),
        optim=OptimConfig(name="muon", lr=0.1, muon_lr=0.02, accumulate=3),
        ema_decay=0.5,
    ),
    "hard": small_recipe(batch_size=14, epochs=3, hard_share=0.6, hard_from=0.3),
}
NORM_RECIPE = small_recipe(batch_size=10, model=NORM_CNN, ema_decay=0.6, optim=OptimConfig(name="adam", lr=0.01))
DIVERGING = small_recipe(
    model=ModelConfig(name="mlp", hidden=(16, 16, 16, 16)), optim=OptimConfig(lr=100.0, momentum=0.99), epochs=20
)


def trained_on_rank(world: World, folder: Path) -> dict[str, Any]:
    """What the tests of several ranks compare: rows and weights of each of RANK_RECIPES, and three mishaps."""
    results: dict[str, Any] = {}
    for name, recipe in RANK_RECIPES.items():
        state, data = fresh(recipe, world, **SPLITS)
        rows = train(state, data, world)
        results[name] = {"rows": rows, "tensors": state.tensors(), "chosen": state.chosen_weights()}
    results["stopped at"] = _stopped_by_the_last_rank(world)
    results["divergence"] = _diverged(world)
    results["continued"] = _continued(world, folder)
    state, data = fresh(RANK_RECIPES["mixed"], world, **SPLITS)
    load_checkpoint(folder / "alone" / checkpoint_name(ALONE_STEPS)).restore(state)
    results["after one rank"] = {"rows": train(state, data, world), "tensors": state.tensors()}
    return results


def train_alone(folder: Path) -> None:
    """The start of a run on one rank, in the middle of its second epoch, for several ranks to go on with."""
    state, data = fresh(RANK_RECIPES["mixed"], **SPLITS)
    train(state, data, options=FitOptions(should_stop=lambda: state.progress.step == ALONE_STEPS))
    save_checkpoint(folder / "alone", state, {})


def _stopped_by_the_last_rank(world: World) -> tuple[int, int]:
    """The step at which the run stands after only the last rank has wished to stop, and the rows it gave."""
    state, data = fresh(small_recipe(), world)
    wish = FitOptions(should_stop=lambda: world.rank == world.size - 1 and state.progress.step >= 2)
    return len(train(state, data, world, wish)), state.progress.step


def _diverged(world: World) -> str:
    state, data = fresh(DIVERGING, world)
    try:
        train(state, data, world)
    except DivergenceError as error:
        return str(error)
    return "no divergence"


def _continued(world: World, folder: Path) -> dict[str, list[str]]:
    """What differs between a whole run and those that went on from its checkpoints: rows, and names of tensors."""
    state, data = fresh(NORM_RECIPE, world)
    saved, rows = [], []
    for report in reports(state, data, world):
        rows += rows_of(report)
        path = folder / f"report-{len(rows)}"
        saved.append(path / checkpoint_name(state.progress.step))
        if world.is_primary:
            save_checkpoint(path, state, {})
        world.barrier()
    wrong: dict[str, list[str]] = {"rows": [], "tensors": []}
    for number, path in list(enumerate(saved, 1))[:-1:2]:
        again, data = fresh(NORM_RECIPE, world)
        load_checkpoint(path).restore(again)
        if train(again, data, world) != rows[number:]:
            wrong["rows"].append(f"after {path.name}")
        names = set(differing_tensors(again.tensors(), state.tensors())) - {"tally"}  # the rows tell of that one
        wrong["tensors"] += [f"{name} after {path.name}" for name in sorted(names)]
    return wrong
