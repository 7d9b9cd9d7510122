"""Ray Tune's schedulers, each told of every epoch once, with its decisions written down before they are acted upon."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    HyperBandForBOHB,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)

from distcifar.config.space import Dimension, Space
from distcifar.config.sweep import SweepSpec
from distcifar.sweep.folder import Result, Results, result_of

TIME, SCORE, LATEST = "epoch", "score", "accuracy"
MUTABLE = ("optim.", "augment.", "label_smoothing", "batch_size")  # what pbt may change under way
FIXED = ("optim.name", "optim.freeze")

Told = Callable[[Result], None]


class Recorded:
    """Mixed into a scheduler: keeps its decisions, and a sweep that goes on keeps those of before.

    An epoch that is told again, after a crash of its process, reaches the scheduler once.
    """

    results: Results
    told: Told
    seed: int

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Tune asks what is to become of `trial` after an epoch."""
        if result.get("interrupted"):
            return TrialScheduler.STOP
        if self._again(result):
            return TrialScheduler.CONTINUE
        # What pbt draws is that of the exchange, whoever comes to it last and however often it is come to.
        random.seed(f"{self.seed}/{result[TIME]}")
        decision = super().on_trial_result(tune_controller, trial, result)  # type: ignore[misc]
        return self._kept(result, decision)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """`trial` has ended, by itself or by a decision."""
        told = "run" in result and not result.get("interrupted") and "test_accuracy" not in result
        if told and not self._again(result):
            self._kept(result, TrialScheduler.STOP)
        super().on_trial_complete(tune_controller, trial, result)  # type: ignore[misc]

    def __getstate__(self) -> dict[str, Any]:
        """For the state that Tune pickles and nobody reads: without what belongs to this process."""
        return {name: value for name, value in self.__dict__.items() if name not in ("results", "told")}

    def _again(self, result: dict[str, Any]) -> bool:
        """Whether that epoch was told before in this process."""
        seen = self.__dict__.setdefault("seen", set())
        key = (result["run"], result["epoch"])
        return key in seen or bool(seen.add(key))

    def _kept(self, result: dict[str, Any], decision: str) -> str:
        """The decision: that of before the interruption, if there was one; else `decision`, written down."""
        known = self.results.known(result["run"], result["epoch"])
        if known is not None:
            self.told(known)
            return known.decision.upper() if known.decision in ("continue", "stop") else decision
        found = result_of(result)
        found = replace(found, decision="failed" if found.problem else decision.lower())
        self.results.add(found)
        self.told(found)
        return decision


def make_scheduler(spec: SweepSpec, space: Space, max_epochs: int, results: Results, told: Told) -> TrialScheduler:
    """The scheduler that `spec` names; epochs go to `results`, and then to `told`."""
    base, words = _described(spec, space, max_epochs)
    scheduler: TrialScheduler = type(f"Recorded{base.__name__}", (Recorded, base), {})(**words)
    scheduler.results, scheduler.told, scheduler.seed = results, told, spec.search_seed
    return scheduler


def plain_scheduler(results: Results, told: Told) -> TrialScheduler:
    """Every trial to its end: of the confirmation."""
    return make_scheduler(SweepSpec(scheduler="none"), Space(()), 1, results, told)


def metric_of(spec: SweepSpec) -> str:
    """What trials are compared by: the best epoch so far; where states are exchanged the newest."""
    return LATEST if spec.scheduler == "pbt" else SCORE


def _described(spec: SweepSpec, space: Space, max_epochs: int) -> tuple[type[TrialScheduler], dict[str, Any]]:
    grace = min(spec.grace, max_epochs)
    common = {"time_attr": TIME}
    match spec.scheduler:
        case "asha":
            return AsyncHyperBandScheduler, common | {
                "max_t": max_epochs, "grace_period": grace, "reduction_factor": spec.reduction,
            }  # fmt: skip
        case "hyperband":
            # Tune's other one decides on a bracket before it is full: with few trials at once it stops none.
            return HyperBandForBOHB, common | {"max_t": max_epochs, "reduction_factor": spec.reduction}
        case "median":
            return MedianStoppingRule, common | {"grace_period": grace}
        case "pbt":
            searched = [dimension for dimension in space.dimensions if mutable(dimension)]
            return PopulationBasedTraining, common | {
                "perturbation_interval": grace,
                "hyperparam_mutations": {dimension.path: _values(dimension) for dimension in searched},
                "custom_explore_fn": lambda config: _bounded(config, searched),
                "log_config": False,
                "synch": True,  # all wait for each other: what comes out does not depend on how fast each is
            }
        case _:
            return FIFOScheduler, {}


def mutable(dimension: Dimension) -> bool:
    """Whether pbt may change the field in the middle of a training."""
    return dimension.when is None and dimension.path.startswith(MUTABLE) and dimension.path not in FIXED


def _values(dimension: Dimension) -> Any:
    """The values as pbt's explorer takes them: a list, or a function that draws."""
    domain = dimension.domain
    return list(domain.values) if domain.kind == "choice" else lambda: domain.draw(random.Random(random.random()))


def _bounded(config: dict[str, Any], searched: list[Dimension]) -> dict[str, Any]:
    """The explorer multiplies by 0.8 or 1.2: held inside the space, and whole numbers whole."""
    for dimension in searched:
        domain, value = dimension.domain, config[dimension.path]
        if domain.kind != "choice":
            value = min(max(value, domain.low), domain.high)
            config[dimension.path] = round(value) if domain.kind == "int" else float(f"{value:.4g}")
    return config
