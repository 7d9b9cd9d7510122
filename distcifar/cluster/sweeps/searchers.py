"""Searchers that learn from results, as Ray Tune asks them: optuna's TPE and BOHB.

What they propose is written down; a sweep that goes on tries the same points again, whatever the searcher says now.
"""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ray.tune.search import SearchAlgorithm, Searcher, SearchGenerator

from distcifar.cluster.sweeps.schedulers import SCORE
from distcifar.config import Recipe
from distcifar.config.space import Dimension, Point, Space, value_at, value_text
from distcifar.config.sweep import SweepSpec
from distcifar.sweep.folder import Sweep, add_point, read_points

if TYPE_CHECKING:
    import ConfigSpace


class Listed(Searcher):
    """Configs that are known beforehand, in their order."""

    def __init__(self, configs: Sequence[dict[str, Any]]) -> None:
        super().__init__(metric=SCORE, mode="max")
        self._left = list(reversed(configs))

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The next one."""
        return self._left.pop() if self._left else self.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:  # noqa: FBT001, FBT002
        """Nothing is learned."""

    def on_pause(self, trial_id: str) -> None:
        """HyperBand tells it."""

    def on_unpause(self, trial_id: str) -> None:
        """HyperBand tells it."""

    def set_search_properties(self, *_: Any, **__: Any) -> bool:
        """There is nothing to set."""
        return True

    def save(self, checkpoint_path: str) -> None:
        """Nothing."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


class Unrecognised(SearchAlgorithm):
    """Tune's generator of trials, as pbt lets it pass: it refuses every searcher, for fear that one might learn."""

    def __init__(self, searcher: Searcher) -> None:
        self._generator = SearchGenerator(searcher)

    @property
    def total_samples(self) -> int:
        """How many trials there are."""
        return int(self._generator.total_samples)

    def add_configurations(self, experiments: Any) -> None:
        """The experiment that trials are made of."""
        self._generator.add_configurations(experiments)

    def next_trial(self) -> Any:
        """The next one; None at the end."""
        return self._generator.next_trial()

    def is_finished(self) -> bool:
        """Whether there is none left."""
        return bool(self._generator.is_finished())

    def set_search_properties(self, *_: Any, **__: Any) -> bool:
        """There is nothing to set."""
        return True

    def save_to_dir(self, *_: Any, **__: Any) -> None:
        """Nothing."""


class Proposals(Searcher):
    """Gives each proposal of `inner` to as many trials as there are seeds, and tells it their mean."""

    def __init__(self, sweep: Sweep, inner: Searcher) -> None:
        super().__init__(metric=SCORE, mode="max")
        self.inner, self._spec, self._seed = inner, sweep.spec, sweep.recipe.seed
        self._folder: Path = sweep.folder
        self._known, self._space = read_points(sweep.folder), sweep.space
        self._numbers: dict[str, int] = {}  # Tune's id -> trial
        self._scores: dict[int, list[float]] = defaultdict(list)

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The config of the next trial; None where the searcher wants results first."""
        number, seeds = len(self._numbers), self._spec.seeds
        if number >= self._spec.trials * seeds:
            return self.FINISHED
        if number % seeds == 0:
            np.random.seed((self._spec.search_seed + number) % 2**32)
            found = self.inner.suggest(str(number // seeds))
            if found is None:
                return None
            point = self._known.get(number) or self._decoded(found)
            if number not in self._known:
                add_point(self._folder, number, point)
                self._known[number] = point
        self._numbers[trial_id] = number
        return config_of(number, self._known[number - number % seeds], self._seed + number % seeds)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """An epoch of a trial; of several seeds only the ends count."""
        if self._spec.seeds == 1:
            self.inner.on_trial_result(str(self._numbers[trial_id]), result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:  # noqa: FBT001, FBT002
        """A trial has ended."""
        group = self._numbers[trial_id] // self._spec.seeds
        self._scores[group].append(float(result[SCORE]) if result else 0.0)
        if len(self._scores[group]) == self._spec.seeds:
            mean = {**(result or {}), SCORE: statistics.fmean(self._scores[group])}
            self.inner.on_trial_complete(str(group), mean, error)

    def on_pause(self, trial_id: str) -> None:
        """BOHB counts those that run."""
        self.inner.on_pause(str(self._numbers[trial_id]))

    def on_unpause(self, trial_id: str) -> None:
        """BOHB counts those that run."""
        self.inner.on_unpause(str(self._numbers[trial_id]))

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        """Whether the searcher itself keeps to so many at once."""
        return bool(self.inner.set_max_concurrency(max_concurrent))

    def set_search_properties(self, *_: Any, **__: Any) -> bool:
        """The space and the metric are known already."""
        return True

    def save(self, checkpoint_path: str) -> None:
        """Nothing: its state is made anew from the sweep's folder."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing; see `save`."""

    def _decoded(self, found: dict[str, Any]) -> Point:
        values = {
            dimension.path: {value_text(value): value for value in dimension.domain.values}
            for dimension in self._space.dimensions
        }
        point = Point()
        for path in self._space.paths:
            if path in found:
                value = found[path]
                rounded = value if isinstance(value, int) else float(f"{value:.4g}") if isinstance(value, float) else 0
                point[path] = values[path][str(value)] if values[path] else rounded
        return point


def config_of(number: int, point: Point, seed: int) -> dict[str, Any]:
    """What Tune is told of trial `number`."""
    return {"run": f"{number:03d}", "seed": seed, **point}


def make_searcher(sweep: Sweep, concurrent: int) -> Searcher:
    """The searcher that learns and that the sweep's specification names."""
    inner = _optuna(sweep) if sweep.spec.search == "optuna" else _bohb(sweep, concurrent)
    return Proposals(sweep, inner)


def _optuna(sweep: Sweep) -> Searcher:
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space, recipe = sweep.space, sweep.recipe

    def define(trial: Any) -> None:
        found = Point()
        for dimension in space.dimensions:
            if dimension.active(found, recipe):
                found[dimension.path] = _asked(trial, dimension)

    return OptunaSearch(space=define, metric=SCORE, mode="max", seed=sweep.spec.search_seed)


def _asked(trial: Any, dimension: Dimension) -> Any:
    """What optuna proposes for one field, as a value of the recipe."""
    domain, path = dimension.domain, dimension.path
    if domain.kind == "choice":
        values = {value_text(value): value for value in domain.values}
        return values[trial.suggest_categorical(path, list(values))]
    if domain.kind == "int":
        return trial.suggest_int(path, int(domain.low), int(domain.high))
    return trial.suggest_float(path, domain.low, domain.high, log=domain.kind == "loguniform")


def _bohb(sweep: Sweep, concurrent: int) -> Searcher:
    from ray.tune.search.bohb import TuneBOHB

    space = bohb_space(sweep.space, sweep.recipe, sweep.spec)
    return TuneBOHB(space, metric=SCORE, mode="max", seed=sweep.spec.search_seed, max_concurrent=concurrent)


def bohb_space(space: Space, recipe: Recipe, spec: SweepSpec) -> "ConfigSpace.ConfigurationSpace":
    """The space in BOHB's words. Of a condition on a field of the recipe only what holds there is in it."""
    from ConfigSpace import Categorical, ConfigurationSpace, Float, InCondition, Integer

    found = ConfigurationSpace(seed=spec.search_seed)
    for dimension in space.dimensions:
        domain, path = dimension.domain, dimension.path
        bounds = (domain.low, domain.high)
        if domain.kind == "choice":
            parameter: Any = Categorical(path, [value_text(value) for value in domain.values])
        elif domain.kind == "int":
            parameter = Integer(path, (int(domain.low), int(domain.high)))
        else:
            parameter = Float(path, bounds, log=domain.kind == "loguniform")
        if dimension.when is None:
            found.add(parameter)
        elif dimension.when[0] in found:
            found.add(parameter)
            found.add(InCondition(parameter, found[dimension.when[0]], [value_text(v) for v in dimension.when[1]]))
        elif value_at(recipe, dimension.when[0]) in dimension.when[1]:
            found.add(parameter)
    return found
