"""How much each searched field decides about a configuration's place among the others.

Trials that were stopped early are compared fairly: two trials by their best accuracies up to the last epoch that both
have reached, as at every epoch both stand at the same place of the same schedule. A trial's standing is the share of
the others that it beats so (ties count half); of several seeds the mean. A stopped trial is thus never set against
epochs that it was not allowed, and what a survivor showed later counts against all who got as far. One that diverged is
beaten by all that did not; one that was given up after crashes says nothing.

Optuna's PED-ANOVA (arXiv 2304.10255; for conditional fields 2601.20800) tells by how much the values of a field differ
between the best part of the configurations and all of them. It only asks who is in that part, so that a standing is
all it needs. It finds something in every field, most in those of few values or few trials: the same is therefore
computed for standings dealt out by chance, whose mean is taken off, and a field that does not beat all of them is not
`clear`.
"""

import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from distcifar.config.space import Dimension, Value, value_text
from distcifar.sweep.folder import Sweep
from distcifar.sweep.ranking import Trial

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study

FEWEST = 6  # configurations
BEST, FEWEST_BEST = 0.25, 5  # the best part: this share, but so many at least (optuna's advice), and at most half
DEALS = 19  # a field is clear that beats all of them: by chance one in twenty does


@dataclass(frozen=True)
class FieldImportance:
    """What one field weighs."""

    path: str
    share: float  # of what all fields together have above chance, 0-1
    clear: bool  # whether it is more than chance gives in 19 of 20 cases


@dataclass(frozen=True)
class Importance:
    """Fields, clear ones first, then by weight; or why nothing can be said."""

    fields: tuple[FieldImportance, ...]
    reason: str = ""
    configurations: int = 0  # that were compared


def importance(sweep: Sweep, trials: Sequence[Trial]) -> Importance:
    """The importance of each searched field, from all trials with a result."""
    used = [trial for trial in trials if trial.point and (trial.problem or (trial.curve and trial.state != "failed"))]
    groups: dict[int, list[int]] = {}
    for place, trial in enumerate(used):
        groups.setdefault(sweep.group_of(trial.number), []).append(place)
    if len(groups) < FEWEST:
        return Importance((), f"{len(groups)} configurations with a result are too few: it takes {FEWEST}", len(groups))
    places = standings(used)
    means = [sum(places[place] for place in members) / len(members) for members in groups.values()]
    if len(set(means)) == 1:
        return Importance((), "All configurations do equally well", len(groups))
    points = [used[members[0]].point for members in groups.values()]
    varied = [dimension for dimension in sweep.space.dimensions if _varies(dimension.path, points)]
    if not varied:
        return Importance((), "All configurations have the same values", len(groups))
    return Importance(_weighed(varied, points, means), "", len(groups))


def standings(trials: Sequence[Trial]) -> list[float]:
    """For each trial the share of the others, 0-1, that it beats at the last epoch that both have reached."""
    best = [_best_so_far(trial) for trial in trials]

    def beats(one: Sequence[float], other: Sequence[float]) -> float:
        epoch = min(len(one), len(other)) - 1
        return float(one[epoch] > other[epoch]) + 0.5 * (one[epoch] == other[epoch])

    return [
        sum(beats(one, other) for j, other in enumerate(best) if j != i) / max(1, len(best) - 1)
        for i, one in enumerate(best)
    ]


def _best_so_far(trial: Trial) -> list[float]:
    """The best accuracy up to epoch 1, 2, ... the last one; nothing is known of epochs before the curve's first."""
    if trial.problem:
        return [-1.0]  # below any accuracy, from the first epoch on
    found, best, epoch = [], 0.0, 0
    for upto, accuracy in trial.curve:
        found += [best] * (upto - epoch - 1)
        best, epoch = max(best, accuracy), upto
        found.append(best)
    return found


def _varies(path: str, points: Sequence[Mapping[str, Value]]) -> bool:
    return len({point.get(path) for point in points}) > 1


def _weighed(
    dimensions: Sequence[Dimension], points: Sequence[Mapping[str, Value]], values: Sequence[float]
) -> tuple[FieldImportance, ...]:
    found = _ped_anova(dimensions, points, values)
    generator = random.Random(0)
    dealt = [_ped_anova(dimensions, points, generator.sample(values, len(values))) for _ in range(DEALS)]
    chance = {path: [each[path] for each in dealt] for path in found}
    above = {path: max(0.0, weight - sum(chance[path]) / DEALS) for path, weight in found.items()}
    total = sum(above.values()) or 1.0
    fields = [FieldImportance(path, above[path] / total, found[path] > max(chance[path])) for path in found]
    return tuple(sorted(fields, key=lambda field: (not field.clear, -field.share)))


def _ped_anova(
    dimensions: Sequence[Dimension], points: Sequence[Mapping[str, Value]], values: Sequence[float]
) -> dict[str, float]:
    """Each dimension's importance for high `values` of `points`, in no unit."""
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    best = min(0.5, max(BEST, FEWEST_BEST / len(points)))
    with _quiet():
        found = get_param_importances(
            _study(dimensions, points, values),
            evaluator=PedAnovaImportanceEvaluator(target_quantile=best),
            params=[dimension.path for dimension in dimensions],
            normalize=False,
        )
    return {path: max(0.0, weight) for path, weight in found.items()}


def _study(dimensions: Sequence[Dimension], points: Sequence[Mapping[str, Value]], values: Sequence[float]) -> "Study":
    """The search as optuna would have it; a field that is not in a point is not in its trial."""
    from optuna.study import create_study
    from optuna.trial import create_trial

    known = {dimension.path: _distribution(dimension, points) for dimension in dimensions}
    study = create_study(direction="maximize")
    for point, value in zip(points, values, strict=True):
        params = {path: _plain(known[path], point[path]) for path in known if path in point}
        study.add_trial(create_trial(value=value, params=params, distributions={path: known[path] for path in params}))
    return study


def _distribution(dimension: Dimension, points: Sequence[Mapping[str, Value]]) -> "BaseDistribution":
    """The dimension's domain for optuna, widened to what pbt has made of it."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    domain, tried = dimension.domain, [point[dimension.path] for point in points if dimension.path in point]
    if domain.kind == "choice":
        return CategoricalDistribution(tuple(dict.fromkeys(map(value_text, (*domain.values, *tried)))))
    numbers: list[Any] = [domain.low, domain.high, *tried]
    if domain.kind == "int":
        return IntDistribution(int(min(numbers)), int(max(numbers)))
    return FloatDistribution(min(numbers), max(numbers), log=domain.kind == "loguniform")


def _plain(distribution: "BaseDistribution", value: Value) -> Any:
    """A choice by its text: optuna keeps scalars only."""
    from optuna.distributions import CategoricalDistribution

    return value_text(value) if isinstance(distribution, CategoricalDistribution) else value


@contextmanager
def _quiet() -> Iterator[None]:
    """Without optuna's lines about a study that nobody sees, and its warnings about small numbers, which we tell."""
    from optuna import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)
