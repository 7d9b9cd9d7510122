"""Named recipes: frozen values, a file per family. A lasting change to a recipe is a new name, not a flag."""

import json
from collections.abc import Iterable
from pathlib import Path

from distcifar.config import Recipe, did_you_mean, from_dict
from distcifar.errors import ConfigError
from distcifar.recipes import cnns, finetune, mlps, mnist, ours, resnets, speedruns

__all__ = ["RECIPES", "by_name", "get_recipe", "read_recipe"]


def by_name(recipes: Iterable[Recipe]) -> dict[str, Recipe]:
    """The recipes under their names, in the order given. Raises ConfigError where two share one."""
    named: dict[str, Recipe] = {}
    for recipe in recipes:
        if recipe.name in named:
            raise ConfigError(
                f"Two recipes are named {recipe.name!r}",
                "A recipe's name means one thing",
                "Rename one in distcifar/recipes",
            )
        named[recipe.name] = recipe
    return named


RECIPES: dict[str, Recipe] = by_name(
    (
        *ours.RECIPES,
        *speedruns.RECIPES,
        *mnist.RECIPES,
        *mlps.RECIPES,
        *cnns.RECIPES,
        *resnets.RECIPES,
        *finetune.RECIPES,
    )
)


def get_recipe(name: str) -> Recipe:
    """The recipe of that name. Raises ConfigError that names the nearest one."""
    if name not in RECIPES:
        raise ConfigError(f"There is no recipe {name!r}", "A recipe is known by name", did_you_mean(name, RECIPES))
    return RECIPES[name]


def read_recipe(path: Path) -> Recipe:
    """A recipe file, as a search writes it. Raises ConfigError where it is none."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be read as a recipe ({error})",
            "A recipe file is JSON, as jobs/best.py writes it",
            "Correct the path",
        ) from None
    return from_dict(Recipe, found)
