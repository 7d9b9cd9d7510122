"""Memory and time as work grows: images, workers and epochs; and whether two hundred epochs leave anything behind."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from distcifar.benchmark import leaks
from distcifar.benchmark.peers import Answer, run_ours
from distcifar.benchmark.place import Place
from distcifar.benchmark.results import Comparison, Line
from distcifar.benchmark.scaling import most_workers, run_ranks, worker_counts
from distcifar.config import AugmentConfig, DataConfig, ModelConfig, OptimConfig, Recipe, RunSpec
from distcifar.data.beton import seal, write_beton
from distcifar.data.build import open_data
from distcifar.data.manifest import Manifest
from distcifar.data.progress import progress
from distcifar.training.build import build_state

SIZES, QUICK_SIZES = (10_000, 30_000, 100_000, 300_000, 1_000_000), (1000, 2000, 4000)
EPOCHS, QUICK_EPOCHS = (2, 4, 8, 16), (2, 4)
LEAK_IMAGES, LEAK_EPOCHS, QUICK_LEAK_EPOCHS = 2000, 200, 8
TEST_IMAGES, SIDE, CLASSES = 500, 32, 10
MODES: tuple[Literal["resident", "streamed"], ...] = ("resident", "streamed")
# The data path is what grows: a linear net hides nothing of it.
RECIPE = Recipe(
    name="growth",
    epochs=2,
    batch_size=512,
    select_on="last",
    model=ModelConfig(name="linear"),
    data=DataConfig(dataset="synthetic", validation=0),
    augment=AugmentConfig(crop_padding=4, flip="random"),
    optim=OptimConfig(lr=0.01),
)


def growth(place: Place) -> list[Comparison]:
    """Time of an epoch and peak memory, against images, workers and epochs."""
    quick = place.settings.quick
    found = _images(QUICK_SIZES if quick else SIZES, place)
    folder = made_up_data(place.scratch / "made-up", LEAK_IMAGES)
    found += _workers(folder, place)
    found += _epochs(folder, QUICK_EPOCHS if quick else EPOCHS, place)
    return [*found, _leaks(folder, QUICK_LEAK_EPOCHS if quick else LEAK_EPOCHS, place)]


def made_up_data(folder: Path, images: int) -> Path:
    """A folder of sealed betons: `images` random training images and a few test images, 32x32 RGB, ten classes."""
    folder.mkdir(parents=True)
    random = np.random.Generator(np.random.Philox(key=7))
    for split, count in (("train", images), ("test", TEST_IMAGES)):
        labels = np.arange(count, dtype=np.int64) % CLASSES
        path = folder / f"{split}.beton"
        write_beton(path, random.integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8), labels)
        draft = Manifest(
            split=split, data=RECIPE.data, source="synthetic", source_digest="0" * 64,
            class_names=tuple(str(index) for index in range(CLASSES)),
            class_counts=tuple(np.bincount(labels, minlength=CLASSES).tolist()),
            height=SIDE, width=SIDE, channels=3, mean=(0.5,) * 3, std=(0.25,) * 3,
        )  # fmt: skip
        seal(path, draft)
    return folder


def _images(sizes: Sequence[int], place: Place) -> list[Comparison]:
    """Each size is written, measured in both modes by turns, and removed."""
    answers: dict[tuple[str, int], list[Answer]] = {(mode, size): [] for mode in MODES for size in sizes}
    with progress("growth: images", len(answers) * place.settings.rounds) as advance:
        for size in sizes:
            folder = made_up_data(place.scratch / f"images-{size}", size)
            for _ in range(place.settings.rounds):
                for mode in MODES:
                    answers[mode, size].append(run_ours(RECIPE, folder, place, RunSpec(loader=mode)))
                    advance(1)
            shutil.rmtree(folder)
    return _costs("images", answers)


def _workers(folder: Path, place: Place) -> list[Comparison]:
    most = most_workers(place)
    answers: dict[tuple[str, int], list[Answer]] = {}
    for count in worker_counts(most):
        for _ in range(place.settings.rounds):
            ranks = run_ranks(RECIPE, folder, count, most, place)
            answers.setdefault(("of each worker", count), []).append(ranks[0])
    return _costs("workers", answers)


def _epochs(folder: Path, epochs: Sequence[int], place: Place) -> list[Comparison]:
    answers: dict[tuple[str, int], list[Answer]] = {}
    for count in epochs:
        for _ in range(place.settings.rounds):
            recipe = replace(RECIPE, epochs=count)
            answers.setdefault(("streamed", count), []).append(
                run_ours(recipe, folder, place, RunSpec(loader="streamed"))
            )
    return _costs("epochs", answers)


def _costs(what: str, answers: dict[tuple[str, int], list[Answer]]) -> list[Comparison]:
    """Two comparisons: the time of an epoch (of a whole training, where epochs grow) and the peak memory."""
    seconds, memory = [], []
    for (curve, x), found in answers.items():
        name = f"{x:,} {what}, {curve}"
        times = [answer.seconds if what == "epochs" else answer.epoch_seconds[-1] for answer in found]
        seconds.append(Line(name, tuple(times), float(x), curve))
        peaks = tuple(answer.process.peak_bytes / 1e6 for answer in found)
        memory.append(Line(name, peaks, float(x), curve))
    title = "Time of the training" if what == "epochs" else "Time of an epoch"
    return [
        Comparison(f"{title} by {what}", "s", tuple(seconds), more_is_better=False, notes=straight_lines(seconds, "s")),
        Comparison(
            f"Peak memory by {what}", "MB", tuple(memory), more_is_better=False, notes=straight_lines(memory, "MB")
        ),
    ]


def straight_lines(lines: Sequence[Line], unit: str) -> tuple[str, ...]:
    """Of each curve, the straight line through its medians by least squares, and how far they lie from it at most."""
    told = []
    for curve in dict.fromkeys(line.curve for line in lines):
        points = [(line.x, line.median) for line in lines if line.curve == curve and line.x is not None]
        if len(points) > 1:
            x, y = (np.array(each) for each in zip(*points, strict=True))
            slope, start = np.polyfit(x, y, 1)
            off = float(np.max(np.abs(start + slope * x - y) / y))
            told.append(f"{curve}: {start:.3g} {unit} + {slope:.3g} {unit} for each; at most {off:.0%} off that line.")
    return tuple(told)


def _leaks(folder: Path, epochs: int, place: Place) -> Comparison:
    """Open files, threads and memory after each of `epochs` streamed epochs that were each left once."""
    recipe = replace(RECIPE, epochs=epochs)
    data = open_data(recipe, folder, place.world, mode="streamed", threads=place.threads)
    state = build_state(recipe, data, "benchmark", place.world)
    found = leaks.train_with_exits(recipe, state, data.loaders, place.world)
    grown = leaks.growth(found)
    memory = tuple(
        Line(f"epoch {number}", (each.resident_bytes / 1e6,), float(number), "resident set")
        for number, each in enumerate(found, 1)
    )
    note = (
        f"After a quarter of {epochs} epochs, each left early once: {grown.files:+d} open files,"
        f" {grown.threads:+d} threads, {grown.bytes_per_epoch / 1e3:+.1f} kB an epoch."
    )
    return Comparison("Memory over the epochs", "MB", memory, more_is_better=False, notes=(note,))
