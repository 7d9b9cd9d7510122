"""Learning-rate schedules: pure functions from a step to a multiplier, and the plateau's state."""

import math
from dataclasses import dataclass

from distcifar.config import ScheduleConfig

PLATEAU_THRESHOLD = 1e-4  # relative improvement that counts, torch's ReduceLROnPlateau default


@dataclass(frozen=True)
class Plateau:
    """What a plateau schedule remembers: part of the training state."""

    best: float | None = None  # lowest loss so far
    wait: int = 0  # epochs since the best
    factor: float = 1.0  # product of all reductions so far

    def after_epoch(self, loss: float, config: ScheduleConfig) -> "Plateau":
        """The state after an epoch with validation loss `loss`.

        torch's rule: `patience` epochs without improvement are borne, the next one reduces.
        """
        lowest = math.inf if self.best is None else self.best
        if loss < lowest * (1 - PLATEAU_THRESHOLD):
            return Plateau(best=loss, wait=0, factor=self.factor)
        if self.wait + 1 > config.patience:
            return Plateau(best=self.best, wait=0, factor=self.factor * config.gamma)
        return Plateau(best=self.best, wait=self.wait + 1, factor=self.factor)


def multiplier(config: ScheduleConfig, *, step: int, steps_per_epoch: int, epochs: int, plateau: Plateau) -> float:
    """What the stage's learning rate is multiplied by at its step `step` (from 0), of `epochs` epochs."""
    moment = step if config.every == "step" else step // steps_per_epoch * steps_per_epoch
    value = _shape(config, moment / steps_per_epoch, epochs, steps_per_epoch, plateau)
    warmup_steps = config.warmup_epochs * steps_per_epoch
    return value * min(1.0, (step + 1) / warmup_steps) if warmup_steps else value


def _shape(config: ScheduleConfig, epoch: float, epochs: int, steps_per_epoch: int, plateau: Plateau) -> float:
    """The multiplier without warm-up at fractional epoch `epoch`."""
    match config.name:
        case "constant":
            return 1.0
        case "step":
            return config.gamma ** (int(epoch) // config.step_epochs)
        case "exponential":
            return config.gamma**epoch
        case "cosine":
            return config.final + (1 - config.final) * (1 + math.cos(math.pi * epoch / epochs)) / 2
        case "linear":
            return 1 - (1 - config.final) * epoch / epochs
        case "plateau":
            return plateau.factor
        case "onecycle":
            last = (epochs * steps_per_epoch - 1) / steps_per_epoch  # the last step ends at `final`
            return _onecycle(config, min(1.0, epoch / last) if last > 0 else config.peak)  # a single step: at the peak


def _onecycle(config: ScheduleConfig, progress: float) -> float:
    """Cosine from `start` up to 1 at `peak`, then down to `final` (Smith, Topin 2018; shape as in torch)."""
    if progress < config.peak:
        low, part = config.start, 1 - progress / config.peak
    else:
        low, part = config.final, (progress - config.peak) / (1 - config.peak) if config.peak < 1 else 0.0
    return low + (1 - low) * (1 + math.cos(math.pi * part)) / 2
