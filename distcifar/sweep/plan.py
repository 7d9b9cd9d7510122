"""What is to be searched, checked before anything is read or started."""

from dataclasses import replace

from distcifar.config import Recipe
from distcifar.config.space import Point, Space, all_points
from distcifar.config.sweep import MODEL_BASED, SweepSpec
from distcifar.errors import ConfigError


def checked_search(recipe: Recipe, space: Space, spec: SweepSpec) -> tuple[Recipe, Space]:
    """`recipe` with the length of a trial, and `space` as spec.space changes it.

    Raises ConfigError for a recipe or a space that cannot be searched, or a grid that is not spec.trials points.
    """
    recipe = _of_length(recipe, spec.max_epochs)
    if recipe.select_on == "last":
        raise ConfigError(
            f"The recipe {recipe.name!r} has no validation images (select_on is last)",
            "Trials are compared on images that they are not trained on",
            "Add --select-on validation --data.validation 5000",
        )
    space = space.changed(spec.space, recipe).checked(recipe)
    if spec.search not in MODEL_BASED:
        planned_points(recipe, space, spec)
    return recipe, space


def planned_points(recipe: Recipe, space: Space, spec: SweepSpec) -> list[Point]:
    """The points of a search that knows them beforehand. Raises ConfigError where a grid has more than spec.trials."""
    return all_points(space, recipe, search=spec.search, count=spec.trials, seed=spec.search_seed, levels=spec.levels)


def _of_length(recipe: Recipe, epochs: int) -> Recipe:
    """`recipe` with trials of `epochs` epochs (0: its own)."""
    if epochs and recipe.then:
        raise ConfigError(
            f"max_epochs is {epochs} and the recipe {recipe.name!r} has further stages",
            "Their lengths are the recipe's",
            "Leave --max-epochs out",
        )
    return replace(recipe, epochs=epochs) if epochs else recipe
