"""Sides measured by turns, so that a slow moment of the machine hits all of them."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from distcifar.benchmark.place import Place
from distcifar.config import Recipe
from distcifar.data.build import OpenData
from distcifar.data.progress import progress
from distcifar.training.build import build_state
from distcifar.training.engine import fit
from distcifar.training.reports import EpochReport, FitOptions, Pace, Report
from distcifar.training.state import TrainState

Side = Callable[[int], float]  # measures once, in round n, and says what it found


def by_turns(sides: Mapping[str, Side], rounds: int, *, title: str, warm_up: int = 1) -> dict[str, list[float]]:
    """What each side found in each round, after `warm_up` rounds that compile and fill caches and do not count.

    Each round begins with another side: none always follows the same one.
    """
    names = list(sides)
    found: dict[str, list[float]] = {name: [] for name in names}
    with progress(title, (warm_up + rounds) * len(names)) as advance:
        for number in range(warm_up + rounds):
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                value = sides[name](number)
                if number >= warm_up:
                    found[name].append(value)
                advance(1)
    return found


def endless_training(
    recipe: Recipe, data: OpenData, place: Place, precision: str = "", pace: Pace | None = None
) -> tuple[TrainState, Iterator[Report]]:
    """A training that goes on for as long as its reports are read, one at each step or as `pace` has it.

    In `precision` ("": the recipe's; bf16 for auto).
    """
    recipe = replace(recipe, epochs=100_000)
    state = build_state(recipe, data, "benchmark", place.world)
    state.set_precision(precision or ("bf16" if recipe.precision == "auto" else recipe.precision))
    return state, fit(recipe, state, data.loaders, place.world, FitOptions(pace or Pace()))


def seconds_of_steps(
    reports: Iterator[Report], steps: int, each: Callable[[Report], None] = lambda report: None
) -> float:
    """The time of at least `steps` steps of a training, `each` with its reports; evaluations are not counted."""
    seconds = 0.0
    while steps > 0:
        begun = time.perf_counter()
        report = next(reports)
        if isinstance(report, EpochReport):
            continue
        each(report)
        seconds += time.perf_counter() - begun
        steps -= len(report.rows)
    return seconds
