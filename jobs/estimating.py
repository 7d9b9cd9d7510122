"""train.py --estimate: what a training would take, and how to start it."""

import os
import sys
from pathlib import Path

from program import command

from distcifar.config import Recipe, RunSpec


def show_estimate(recipe: Recipe, spec: RunSpec, prices: str, argv: list[str]) -> int:
    """Measures a few steps and shows the tables; trains nothing. prices: a price table instead of ours."""
    os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"  # else each of several ranks prints DDP's advice
    from rich.console import Console

    from distcifar.cluster.estimates.run import estimate_run
    from distcifar.cluster.estimates.screen import show_outlook

    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)
    cluster = Path(__file__).parents[1] / "cluster.yaml"
    outlook = estimate_run(recipe, spec, cluster=cluster, prices=prices, announce=console.print)
    show_outlook(outlook, console)
    own = ("--estimate", "--prices")
    pairs = zip(["", *argv], argv, strict=False)
    words = [word for before, word in pairs if before != own[1] and word.partition("=")[0] not in own]
    console.print(f"To start it: {command(*words)}", markup=False)
    return 0
