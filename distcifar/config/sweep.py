"""SweepSpec: how a search goes over the space of a recipe. What a single training is stays in Recipe and RunSpec."""

import re
from dataclasses import dataclass
from typing import Literal

from distcifar.config.values import Range, conform, require, require_ranges

RANGES = {
    "trials": Range(1, 100_000),
    "max_epochs": Range(0, 100_000),
    "grace": Range(1),
    "reduction": Range(1, 100, open_low=True),
    "seeds": Range(1, 100),
    "workers_per_trial": Range(1, 1024),
    "cpus_per_trial": Range(0, 1024),
    "gpus_per_trial": Range(0, 1024),
    "concurrent": Range(0, 100_000),
    "levels": Range(1, 1000),
    "search_seed": Range(0, 2**31),
    "retries": Range(0),
}
MODEL_BASED = ("optuna", "bohb")  # what they try next depends on what came out


@dataclass(frozen=True, kw_only=True)
class SweepSpec:
    """One search."""

    trials: int = 32
    """Configurations to try."""
    scheduler: Literal["asha", "hyperband", "pbt", "median", "none"] = "asha"
    """Who stops weak trials: asha at rungs, hyperband in rounds, median below the others' mean; pbt replaces them."""
    search: Literal["random", "grid", "optuna", "bohb"] = "random"
    """Where configurations come from; optuna (TPE) and bohb learn from results."""
    max_epochs: int = 0
    """Length of a trial that is not stopped (0: the recipe's own); schedules end there."""
    grace: int = 1
    """asha, median, hyperband: no trial is stopped before so many epochs; pbt: epochs between two exchanges."""
    reduction: float = 3.0
    """asha, hyperband: of so many trials that reach a rung one goes on."""
    seeds: int = 1
    """Train each configuration with N seeds and compare the means."""
    workers_per_trial: int = 1
    """Training processes of a trial; more than one run DDP."""
    cpus_per_trial: int = 0
    """CPU cores of each process of a trial (0: one, on a machine without a GPU; else the cores shared out)."""
    gpus_per_trial: float = 1.0
    """Share of a GPU that each process of a trial has; 0.25 puts four on one card. Without a GPU it means nothing."""
    concurrent: int = 0
    """Trials at once (0: as many as there is room for). 1 repeats exactly, whatever is interrupted."""
    space: tuple[str, ...] = ()
    """Changes to the recipe's space: PATH=loguniform:LOW:HIGH, uniform:, int:, choice:A|B; PATH=off; first only."""
    levels: int = 3
    """grid: values of each interval."""
    search_seed: int = 0
    """Seed of the search itself."""
    retries: int = 3
    """How often a trial that crashes is taken up again before it is given up."""
    confirm: str = "3x3"
    """Train the best N again with M other seeds each, NxM; their means name the winner (0x0: not)."""
    export: str = ""
    """Also write the winner as recipe file NAME.json, for jobs/train.py NAME.json."""

    def __post_init__(self) -> None:
        conform(self)
        require_ranges(self, "", RANGES)
        require(
            re.fullmatch(r"\d{1,3}x\d{1,3}", self.confirm) is not None,
            f"confirm is {self.confirm!r}",
            "It is NxM: the best N, with M seeds each",
            "Use --confirm 3x3, or 0x0 for none",
        )
        require(
            self.scheduler != "pbt" or (self.search in ("random", "grid") and self.seeds == 1),
            f"scheduler is pbt, search {self.search} and seeds {self.seeds}",
            "Population-based training changes its trials itself, one seed each",
            "Use --search random --seeds 1",
        )
        require(
            self.scheduler != "pbt" or self.workers_per_trial == 1,
            f"scheduler is pbt and workers_per_trial {self.workers_per_trial}",
            "Trials that exchange their states are single processes",
            "Use --workers-per-trial 1",
        )
        require(
            (self.search == "bohb") <= (self.scheduler == "hyperband"),
            f"search is bohb and scheduler {self.scheduler}",
            "BOHB learns from HyperBand's rounds",
            "Use --scheduler hyperband",
        )

    @property
    def confirmed(self) -> tuple[int, int]:
        """How many of the best are confirmed, and with how many seeds each."""
        best, _, seeds = self.confirm.partition("x")
        return (int(best), int(seeds)) if int(best) and int(seeds) else (0, 0)
