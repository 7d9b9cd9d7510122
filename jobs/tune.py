"""Searches over a recipe with Ray Tune: tries configurations, stops weak ones early, confirms and exports the winner.

examples:
  python jobs/tune.py cnn2                                      32 trials, ASHA, the recipe's own space
  python jobs/tune.py cnn2 --max-epochs 9 --trials 24 --name a  into runs/a; the same command goes on with it
  python jobs/tune.py resnet9 --space optim.lr=loguniform:1e-3:1 label_smoothing=off    another space
  python jobs/tune.py quick --space only optim.muon_lr=choice:0.05|0.1 --search grid --scheduler none
  python jobs/tune.py cnn2 --search bohb --scheduler hyperband  a searcher that learns
  python jobs/tune.py cnn2 --data.train-first 10000 --confirm 3x5 --export mine    any field of the recipe; mine.json
  python jobs/tune.py RECIPE --help                             every field with its meaning
"""

import os
import sys
from dataclasses import dataclass, fields
from typing import Annotated

import tyro
from flags import RecipeFlags, TrialFlags
from program import INTERRUPTED, command, from_environment, run_program

from distcifar.cluster import ENVIRONMENT
from distcifar.cluster.stored.places import require_folder
from distcifar.config import Recipe, RunSpec
from distcifar.config.sweep import SweepSpec
from distcifar.recipes import RECIPES, get_recipe
from distcifar.recipes.spaces import space_of
from distcifar.sweep.plan import checked_search


@dataclass(frozen=True)
class Command:
    """What to search, how, and how each trial is trained."""

    recipe: Annotated[RecipeFlags, tyro.conf.arg(name="")]
    sweep: Annotated[SweepSpec, tyro.conf.arg(name="")]
    run: Annotated[TrialFlags, tyro.conf.arg(name="")]


def parse(argv: list[str]) -> tuple[Recipe, SweepSpec, RunSpec]:
    """The command line; --help and unreadable words end the program."""
    if not argv or argv[0].startswith("-"):
        print(__doc__, file=sys.stderr if not argv else sys.stdout)
        sys.exit(0 if argv and argv[0] in ("-h", "--help") else 2)
    named = get_recipe(argv[0])
    flags = RecipeFlags(**{field.name: getattr(named, field.name) for field in fields(named)})
    chosen = tyro.cli(
        Command, args=argv[1:], default=Command(flags, SweepSpec(), TrialFlags()), prog=f"tune.py {named.name}",
        description=f"Searched: {', '.join(map(str, space_of(named).dimensions))}",
    )  # fmt: skip
    recipe = Recipe(**{field.name: getattr(chosen.recipe, field.name) for field in fields(Recipe)})
    run = RunSpec(**{field.name: getattr(chosen.run, field.name) for field in fields(RunSpec)})
    return recipe, chosen.sweep, from_environment(run)


def main(argv: list[str]) -> int:
    recipe, spec, run = parse(argv)
    require_folder(run.runs)  # trials wait for decisions in files that they share
    recipe, space = checked_search(recipe, space_of(recipe), spec)
    environment = dict(os.environ)
    os.environ.pop("WANDB_API_KEY", None)  # it is for the processes that speak with W&B, not for Ray's
    os.environ.update(ENVIRONMENT)
    from distcifar.cluster.sweeps.launch import open_sweep, run_sweep
    from distcifar.insight.sweep_ending import present, publish
    from distcifar.sweep.screen import SweepDisplay

    sweep = open_sweep(recipe, space, spec, run, print)
    with SweepDisplay(sweep) as display:
        end = run_sweep(sweep, run, display.show, display.say, environment)
    for name, reason in end.failed.items():
        display.say(f"trial {name} was given up: {reason}")
    if end.stopped:
        named = [] if run.name else ["--name", sweep.folder.name]
        display.say(f"Stopped. To go on: {command(*argv, *named)}")
        return INTERRUPTED
    present(sweep, end.trials, end.ranked, end.confirmed, display.console, spec.export)
    if run.wandb != "disabled":
        os.environ.update(environment)  # with the key again: Ray is gone
        later = command("sync").replace("tune.py", "report.py")
        display.say(publish(sweep, RECIPES, online=run.wandb in ("auto", "online"), later=later))
    display.say(f"Train it: {command(str(sweep.folder / 'best.json')).replace('tune.py', 'train.py')}")
    return 0


if __name__ == "__main__":
    run_program(main)
