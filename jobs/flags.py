"""Recipe and RunSpec as flags of a command line, without the fields that are not for it."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from distcifar.config import Recipe, RunSpec


@dataclass(frozen=True, kw_only=True)
class RecipeFlags(Recipe):
    """A recipe's numbers; its name and texts are not for the command line."""

    name: tyro.conf.Suppress[str]
    description: tyro.conf.Suppress[str] = ""
    reported_accuracy: tyro.conf.Suppress[float | None] = None


@dataclass(frozen=True)
class TrainCommand:
    """What to train, and where and how."""

    recipe: Annotated[RecipeFlags, tyro.conf.arg(name="")]
    run: Annotated[RunSpec, tyro.conf.arg(name="")]
    estimate: tyro.conf.FlagCreatePairsOff[bool] = False
    """Train nothing: measure a few steps, and say what the training would take in time, memory, disk and money."""
    prices: str = ""
    """An estimate with another price table (a JSON file, as distcifar/cluster/estimates/prices.json)."""


@dataclass(frozen=True, kw_only=True)
class TrialFlags(RunSpec):
    """How each trial is trained; what the search decides itself is not for the command line."""

    workers: tyro.conf.Suppress[int] = 1
    min_workers: tyro.conf.Suppress[int] = 0
    cpus_per_worker: tyro.conf.Suppress[int] = 0
    resume: tyro.conf.Suppress[str] = "auto"
    branch: tyro.conf.Suppress[bool] = False
    group: tyro.conf.Suppress[str] = ""
    keep_last: tyro.conf.Suppress[int] = 1
    keep_best: tyro.conf.Suppress[int] = 0
    checkpoint_epochs: tyro.conf.Suppress[int] = 1
    upload: tyro.conf.Suppress[Literal["none", "model", "state", "data"]] = "none"
