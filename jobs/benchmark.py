"""Measures what this project claims, beside its peers in the same run, so that anyone can repeat it.

examples:
  python jobs/benchmark.py loader                 the data path against FFCV's own and a DataLoader, on CIFAR-10
  python jobs/benchmark.py loader --source cifar10.npz --rounds 9
  python jobs/benchmark.py step --recipe cnn-day41     step, epoch and command against a plain PyTorch script
  python jobs/benchmark.py startup --full         from the command to the first step; also with two workers
  python jobs/benchmark.py scaling                1..N workers, and a prediction for 8 and 64
  python jobs/benchmark.py speedrun --runs 10 --peer airbench.py    accuracy over seeds, beside another script
  python jobs/benchmark.py growth                 memory and time as images, workers and epochs grow; leaks
  python jobs/benchmark.py saving                 what a checkpoint costs a training of resnet18
  python jobs/benchmark.py tracking               what W&B, offline, costs a training of quick
  python jobs/benchmark.py simulation             1,000 ranks and 10,000 runs on this machine: what grows, and how fast
  python jobs/benchmark.py all                    everything; --quick: only to see that it works
"""

import os
from dataclasses import dataclass, fields, replace
from typing import Literal

import tyro
from program import JOB, VARIABLES, folder, run_program

from distcifar.benchmark.settings import Part, Settings


@dataclass(frozen=True, kw_only=True)
class Arguments(Settings):
    """What to measure."""

    what: tyro.conf.Positional[Literal[Part, "all"]]
    """docs/benchmarks.md describes each."""


def main(argv: list[str]) -> int:
    """Measures, shows, and keeps it in the folder --out; returns the exit code."""
    arguments = tyro.cli(Arguments, args=argv, description=__doc__, prog="benchmark.py")
    settings = Settings(**{field.name: getattr(arguments, field.name) for field in fields(Settings)})
    settings = replace(settings, root=str(folder(settings.root)), out=str(folder(settings.out)))
    aside = (JOB, *VARIABLES)  # submitted as a job: what is measured is the machine that this runs on, not its cluster
    environment = {name: value for name, value in os.environ.items() if name not in aside}
    from distcifar.benchmark.run import run_benchmark

    run_benchmark(arguments.what, settings, environment)
    return 0


if __name__ == "__main__":
    run_program(main)
