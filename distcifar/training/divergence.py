"""When training is no longer sound: NaN or Inf, a loss that jumps, a loss scaler that finds no scale.

The numbers are equal on all ranks, so all raise at the same step. What follows is the caller's business: stop, or
go back to a checkpoint with a lower learning rate (cluster/rank.py).
"""

import math
from dataclasses import dataclass

from distcifar.config import Recipe
from distcifar.errors import DivergenceError
from distcifar.training.state import TrainState
from distcifar.training.step import StepResult

LR_CUT = 0.5  # what a rollback multiplies the learning rate by
MEMORY = 0.95  # of the running mean of losses: about the last twenty steps
SKIPPED_STEPS = 40  # fp16: the scale has then been halved from 65,536 to less than 1e-7


@dataclass(frozen=True)
class Done:
    """A step that was done: its number from 1, epochs done after it, learning rate, images, device values."""

    step: int
    epoch: float
    lr: float
    images: int
    result: StepResult


def require_sound(
    recipe: Recipe, state: TrainState, steps: list[Done], losses: list[float], norms: list[float]
) -> None:
    """Raises DivergenceError at the first of `steps` whose global loss or gradient norm is not to be trusted."""
    for done, loss, norm in zip(steps, losses, norms, strict=True):
        problem = _problem(recipe, state, loss, norm)
        if problem:
            raise DivergenceError(
                f"At step {done.step} (epoch {state.progress.epoch + 1}) {problem}; the learning rate was {done.lr:g}",
                "Training needs finite numbers; all workers stopped at this step",
                f"Try --optim.lr {recipe.optim.lr / 10:g}, --optim.clip-norm 1, a warm-up "
                "(--schedule.warmup-epochs 1), --precision fp32 or --on-divergence rollback",
            )


def _problem(recipe: Recipe, state: TrainState, loss: float, norm: float) -> str:
    """What is wrong with a step, or "". Moves the running mean and the count of skipped steps."""
    progress = state.progress
    scaled = state.scaler.is_enabled()  # then an infinite gradient is the scaler's business, for a while
    progress.skipped = progress.skipped + 1 if scaled and not math.isfinite(norm) else 0
    if not math.isfinite(loss) or not (math.isfinite(norm) or scaled):
        return f"the loss is {loss:g} and the gradient's norm {norm:g}"
    if progress.skipped >= SKIPPED_STEPS:
        return f"fp16 gradients were infinite for {SKIPPED_STEPS} steps in a row, at any scale"
    recent = loss if progress.recent_loss is None else progress.recent_loss
    if recipe.spike_factor and loss > recipe.spike_factor * recent:
        return f"the loss jumped to {loss:g} from {recent:g} in the mean of the steps before"
    progress.recent_loss = MEMORY * recent + (1 - MEMORY) * loss
    return ""
