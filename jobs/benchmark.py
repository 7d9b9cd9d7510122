"""Measures what this project claims, so that anyone can repeat it.

examples:
  python jobs/benchmark.py loader                 the data path against FFCV's own and a DataLoader, on CIFAR-10
  python jobs/benchmark.py loader --source cifar10.npz --rounds 9
  python jobs/benchmark.py saving                 what a checkpoint costs a training of resnet18
  python jobs/benchmark.py tracking               what W&B, offline, costs a training of quick
"""

import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro
from program import run_program
from rich.console import Console
from rich.table import Table

from distcifar.config import DataConfig
from distcifar.data.prepare import PreparedData, prepare
from distcifar.recipes import get_recipe


@dataclass(frozen=True)
class Arguments:
    """What to measure."""

    what: tyro.conf.Positional[Literal["loader", "saving", "tracking"]]
    """loader: images per second from a beton to normalised float32 batches. saving, tracking: the price of checkpoints,
    of W&B."""
    dataset: str = "cifar10"
    """Data set, as for jobs/prepare.py."""
    source: str = ""
    """Where it lies, instead of a download."""
    data_root: Annotated[str, tyro.conf.arg(name="root")] = "data"
    """Folder of the prepared data sets."""
    rounds: int = 5
    """Interleaved rounds; the median is told."""
    threads: int = 2
    """Worker threads (FFCV, kernel) and processes (DataLoader)."""
    steps: int = 40
    """saving, tracking: steps of a block."""
    batch_size: int = 64
    """saving, tracking: images in a step; a small one makes steps short, and the price easy to see."""
    debug: bool = False
    """Show tracebacks of mistakes."""


def main(argv: list[str]) -> int:
    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    from distcifar.training.allocator import keep_freed_memory

    root = Path(arguments.data_root).absolute()
    data = prepare(DataConfig(dataset=arguments.dataset), root, arguments.source, announce=print)
    keep_freed_memory()  # as a training does
    Console(width=110).print((loader if arguments.what == "loader" else cost)(arguments, data))
    return 0


def loader(arguments: Arguments, data: PreparedData) -> Table:
    from distcifar.data.benchmark import compare_loaders

    rows = compare_loaders(data.train, rounds=arguments.rounds, threads=arguments.threads)
    table = Table("path", "images/s", "lowest", "highest", "x DataLoader", "x FFCV's own")
    for row in rows:
        speeds = [f"{row[key]:,.0f}" for key in ("median", "min", "max")]
        ratios = [f"{row['median'] / peer['median']:.1f}" for peer in rows[:2]]
        table.add_row(row["path"], *speeds, *ratios)
    return table


def cost(arguments: Arguments, data: PreparedData) -> Table:
    from distcifar.cluster.benchmark import Place, saving_cost, tracking_cost
    from distcifar.data.build import open_data
    from distcifar.world import World

    measure, name = {"saving": (saving_cost, "resnet18"), "tracking": (tracking_cost, "quick")}[arguments.what]
    recipe = replace(get_recipe(name), batch_size=arguments.batch_size)
    opened = open_data(recipe, data.folder, World(), mode="auto", threads=arguments.threads)
    table = Table(f"{name}, blocks of {arguments.steps} steps", "median")
    with tempfile.TemporaryDirectory(dir=data.folder.parent) as folder:
        place = Place(Path(folder), data, opened, dict(os.environ))
        for row in measure(recipe, place, rounds=arguments.rounds, steps=arguments.steps):
            table.add_row(*row)
    return table


if __name__ == "__main__":
    run_program(main)
