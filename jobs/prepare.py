"""Prepares a data set for training: reads it, splits it, writes FFCV files that are checked before every use.

examples:
  python jobs/prepare.py cifar10                               downloads, resuming where it broke off
  python jobs/prepare.py cifar10 --source cifar-10-python.tar.gz   from a local copy (archive, folder or .npz)
  python jobs/prepare.py mnist --source mnist --validation 6000    the four official gz files in a folder
  python jobs/prepare.py npz:own.npz --validation 500          arrays train_x, train_y (test_x, test_y, classes)
  python jobs/prepare.py photos --size 64 --validation 500     photos/CLASS/*.jpg, or photos/train/, photos/test/
  python jobs/prepare.py cifar10 --root s3://bucket/data       for a cluster: each node takes its copy from there
  python jobs/prepare.py synthetic                             made up, for a first try without any data
"""

import time
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro
from program import place, run_program

from distcifar.config import DataConfig
from distcifar.data.shared import shared_data
from distcifar.data.summary import print_summary


@dataclass(frozen=True)
class Command:
    """What to prepare, from where, and how to split it."""

    dataset: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATASET")]
    """cifar10, cifar100, mnist, fashion-mnist, synthetic, npz:FILE, or a directory with a folder per class."""
    source: str = ""
    """A local copy of an official set, instead of the download."""
    root: str = "data"
    """Folder of all prepared data sets; also a URL (s3://bucket/data) that the nodes of a cluster share."""
    validation: int = -1
    """Training images held out, stratified by class (-1: 5000, of synthetic 256)."""
    size: int = 0
    """Store images at N x N pixels (0: as they are; needed when a directory mixes sizes)."""
    train_first: int = 0
    """Train on the first N training images only (0: all); validation then comes from the rest."""
    split_seed: int = 0
    """Seed of the validation split."""
    storage: Literal["raw", "jpeg"] = "raw"
    """Keep the pixels, or JPEGs: several times smaller, slower to read, other pixels."""
    max_broken: float = 0.01
    """Share of a directory's images that may fail to decode; they are named in quarantine.json."""
    repair: bool = False
    """Write anew what is damaged, or was made from another version of the source."""
    debug: bool = False
    """Show tracebacks of mistakes."""


def main(argv: list[str]) -> int:
    """Prepares and shows what there is; returns the exit code."""
    start = time.monotonic()
    command = tyro.cli(Command, args=argv, description=__doc__, prog="prepare.py")
    default = 256 if command.dataset == "synthetic" else 5000
    config = DataConfig(
        dataset=command.dataset,
        validation=default if command.validation == -1 else command.validation,
        size=command.size,
        train_first=command.train_first,
        split_seed=command.split_seed,
        storage=command.storage,
    )
    prepared = shared_data(
        config, place(command.root), "", command.source,
        announce=print, repair=command.repair, max_broken=command.max_broken,
    )  # fmt: skip
    print_summary(prepared, seconds=time.monotonic() - start)
    return 0


if __name__ == "__main__":
    run_program(main)
