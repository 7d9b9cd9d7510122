"""After an epoch: which one is the best so far, whether the rate falls, and whether to go on."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from distcifar.config import Recipe, Stage
from distcifar.training.metrics import Evaluation
from distcifar.training.state import TrainState


def stage_at(recipe: Recipe, epoch: int) -> tuple[Stage, int]:
    """The stage that epoch `epoch` (from 0) belongs to, and its number of epochs before that one."""
    for stage in recipe.stages:
        if epoch < stage.epochs:
            return stage, epoch
        epoch -= stage.epochs
    raise ValueError("the epoch is past the recipe's last one")


def best_steps(recipe: Recipe, epochs: Iterable[Mapping[str, Any]], count: int) -> list[int]:
    """The steps of the `count` best of these epoch rows, the best first."""
    name, sign = f"{recipe.select_on}/{recipe.select_metric}", 1 if recipe.select_metric == "accuracy" else -1
    loss = f"{recipe.select_on}/loss"  # an epoch whose loss is NaN is no candidate, as in `choose`
    measured = [row for row in epochs if math.isfinite(row.get(loss, math.nan))]
    ranked = sorted(measured, key=lambda row: sign * row[name], reverse=True)  # stable: of equal ones the first
    return [row["step"] for row in ranked[:count]]


def choose(recipe: Recipe, state: TrainState, result: Evaluation | None) -> bool:
    """Updates best, plateau, early stopping and outcome after an epoch; returns whether it is the best."""
    progress = state.progress
    metric: float | None = None
    if result is not None:
        stage, _ = stage_at(recipe, progress.epoch - 1)
        if stage.schedule.name == "plateau":
            progress.plateau = progress.plateau.after_epoch(result.loss, stage.schedule)
        if math.isfinite(result.loss):  # NaN would be the best for ever: nothing is better than it
            metric = result.accuracy if recipe.select_metric == "accuracy" else result.loss
    sign = 1 if recipe.select_metric == "accuracy" else -1
    best = progress.best_metric
    better = metric is not None and (best is None or sign * metric > sign * best)
    improved = recipe.select_on == "last" or better
    if improved:
        progress.best_metric, progress.best_epoch, progress.best_step = metric, progress.epoch, progress.step
        progress.wait = 0
        state.keep_best()
    else:
        progress.wait += 1
    if recipe.early_stop and progress.wait >= recipe.early_stop:
        progress.outcome = "early stop"
    elif progress.epoch >= recipe.total_epochs:
        progress.outcome = "finished"
    return improved
