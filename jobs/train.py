"""Trains a recipe: prepares the data that is missing, trains, measures the test split once, shows the result.

examples:
  python jobs/train.py quick                               CIFAR-10; downloads what is missing
  python jobs/train.py quick --source cifar10.npz --name a from a local copy, into runs/a
  python jobs/train.py resnet9 --optim.lr 0.01 --epochs 5  any field of a recipe can be changed
  python jobs/train.py resnet18 --workers 2                two workers through Ray Train
  python jobs/train.py resnet18 --workers 2..8             as many as there are places for, while it runs
  python jobs/train.py quick --resume runs/a --branch --name b --optim.lr 0.01    from a's newest checkpoint on
  python jobs/train.py quick --resume wandb:team/distcifar/a-3fa9c2   a run of another machine, with nothing but W&B
  python jobs/train.py runs/a/best.json                    a recipe file: what a search has found (jobs/tune.py)
  python jobs/train.py resnet18 --estimate --workers 2     what it would take: time, memory, disk, money
  python jobs/train.py RECIPE --help                       every field with its meaning
"""

import os
import sys
from dataclasses import fields
from pathlib import Path

import tyro
from estimating import show_estimate
from flags import RecipeFlags, TrainCommand
from program import INTERRUPTED, command, from_environment, run_program

from distcifar.cluster import ENVIRONMENT
from distcifar.config import Recipe, RunSpec
from distcifar.config.run import spelled_out
from distcifar.recipes import RECIPES, get_recipe, read_recipe


def parse(argv: list[str]) -> tuple[Recipe, RunSpec, TrainCommand]:
    """Recipe, run specification and all else of the command line; --help and unreadable words end the program."""
    if not argv or argv[0].startswith("-"):
        print(__doc__, "\nrecipes:", file=sys.stderr if not argv else sys.stdout)
        for name, recipe in RECIPES.items():
            print(f"  {name:24} {recipe.description.strip().splitlines()[0]}")
        sys.exit(0 if argv and argv[0] in ("-h", "--help") else 2)
    named = read_recipe(Path(argv[0])) if argv[0].endswith(".json") else get_recipe(argv[0])
    flags = RecipeFlags(**{field.name: getattr(named, field.name) for field in fields(named)})
    chosen = tyro.cli(
        TrainCommand, args=spelled_out(argv[1:]), default=TrainCommand(flags, RunSpec()), prog=f"train.py {named.name}",
        description=named.description,
    )  # fmt: skip
    recipe = Recipe(**{field.name: getattr(chosen.recipe, field.name) for field in fields(Recipe)})
    return recipe, from_environment(chosen.run, recipe), chosen


def main(argv: list[str]) -> int:
    recipe, spec, chosen = parse(argv)
    environment = dict(os.environ)
    os.environ.pop("WANDB_API_KEY", None)  # it is for the process that speaks with W&B, not for Ray's
    os.environ.update(ENVIRONMENT)
    if chosen.estimate or chosen.prices:
        return show_estimate(recipe, spec, chosen.prices, argv)
    from distcifar.cluster.launch import launch
    from distcifar.tracking.console import Display, result_table

    with Display(recipe, spec=spec) as display:
        result = launch(recipe, spec, listen=display.show, announce=display.say, environment=environment)
    if result.summary is None:
        display.say(f"Stopped at step {result.stopped_at} with a checkpoint in {result.place}/checkpoints.")
        name = [] if spec.name else ["--name", result.folder.name]
        display.say(f"To go on: {command(*argv, *name)}")
        return INTERRUPTED
    from distcifar.insight.curves import draw_run
    from distcifar.insight.samples import draw_samples

    draw_run(result.folder, result.summary)
    draw_samples(result.folder, result.summary)
    display.console.print(result_table(result.summary, display.data_wait))
    result.keep("curves.png", "samples.png")
    copy = f"; a copy in {result.folder}" if result.url else ""
    display.say(f"Results: {result.place} (curves.png, samples.png, metrics.csv, summary.json, model/){copy}")
    display.say(f"Next: {command(recipe.name, '--seed', str(recipe.seed + 1))}, or another recipe (--help lists them)")
    return 0


if __name__ == "__main__":
    run_program(main)
