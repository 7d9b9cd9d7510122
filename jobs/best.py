"""What a search has found so far: its ranking, pictures and page, and its winner as a recipe file.

examples:
  python jobs/best.py runs/a                     also while the search goes on, or after it was stopped
  python jobs/best.py runs/a --export mine       mine.json, for python jobs/train.py mine.json
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from program import run_program
from rich.console import Console

from distcifar.cluster.stored.places import require_folder


@dataclass(frozen=True)
class Command:
    """Which search, and where its winner goes."""

    sweep: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SWEEP")]
    """The search's folder."""
    export: Annotated[str, tyro.conf.arg(metavar="NAME")] = ""
    """Also write the winner as NAME.json."""
    debug: bool = False
    """Show tracebacks of mistakes."""


def main(argv: list[str]) -> int:
    """Shows it; returns the exit code."""
    chosen = tyro.cli(Command, args=argv, description=__doc__, prog="best.py", config=(tyro.conf.FlagCreatePairsOff,))
    from distcifar.insight.sweep_ending import present
    from distcifar.sweep.folder import read_sweep
    from distcifar.sweep.winner import RANKING, known_confirmed, ranked_trials

    sweep = read_sweep(Path(require_folder(chosen.sweep)).absolute())
    trials, ranked = ranked_trials(sweep, (), over=(sweep.folder / RANKING).exists())
    present(sweep, trials, ranked, known_confirmed(sweep), Console(highlight=False, soft_wrap=True), chosen.export)
    return 0


if __name__ == "__main__":
    run_program(main)
