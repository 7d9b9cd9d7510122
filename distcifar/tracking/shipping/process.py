"""Processes of this package's own: the ones that speak with W&B beside a training."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import distcifar


def command(module: str, *words: str) -> list[str]:
    """The command line that runs `module` of this package, in this Python."""
    return [sys.executable, "-m", module, *words]


def with_package(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment`, in which this package is found also where it is not installed."""
    root = str(Path(distcifar.__file__).parents[1])
    paths = [root, *environment.get("PYTHONPATH", "").split(os.pathsep)]
    return {**environment, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
