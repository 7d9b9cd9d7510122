"""Measures what this project claims, so that anyone can repeat it.

examples:
  python jobs/benchmark.py loader                 the data path against FFCV's own and a DataLoader, on CIFAR-10
  python jobs/benchmark.py loader --source cifar10.npz --rounds 9
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from program import run_program

from distcifar.config import DataConfig


@dataclass(frozen=True)
class Arguments:
    """What to measure."""

    what: tyro.conf.Positional[Literal["loader"]]
    """loader: images per second from a beton to normalised float32 batches."""
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
    debug: bool = False
    """Show tracebacks of mistakes."""


def main(argv: list[str]) -> int:
    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    from rich.console import Console
    from rich.table import Table

    from distcifar.data.benchmark import compare_loaders
    from distcifar.data.prepare import prepare
    from distcifar.training.allocator import keep_freed_memory

    root = Path(arguments.data_root).absolute()
    data = prepare(DataConfig(dataset=arguments.dataset), root, arguments.source, announce=print)
    keep_freed_memory()  # as a training does
    rows = compare_loaders(data.train, rounds=arguments.rounds, threads=arguments.threads)
    table = Table("path", "images/s", "lowest", "highest", "x DataLoader", "x FFCV's own")
    for row in rows:
        speeds = [f"{row[key]:,.0f}" for key in ("median", "min", "max")]
        ratios = [f"{row['median'] / peer['median']:.1f}" for peer in rows[:2]]
        table.add_row(row["path"], *speeds, *ratios)
    Console(width=110).print(table)
    return 0


if __name__ == "__main__":
    run_program(main)
