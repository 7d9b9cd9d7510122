"""OptimConfig and ScheduleConfig: how the weights move, and the learning rate over time."""

from dataclasses import dataclass
from typing import Literal

from distcifar.config.values import Range, conform, moments, require, require_ranges

OPTIM_RANGES = {
    "lr": Range(0, 100, open_low=True),
    "muon_lr": Range(0, 100, open_low=True),
    "momentum": Range(0, 0.9999),
    "muon_momentum": Range(0, 0.9999),
    "weight_decay": Range(0, 10),
    "head_lr_factor": Range(0, 1e4, open_low=True),
    "bias_lr_factor": Range(0, 1e4, open_low=True),
    "clip_norm": Range(0),
    "accumulate": Range(1, 4096),
    "betas": Range(0, 0.99999),
}
SCHEDULE_RANGES = {
    "warmup_epochs": Range(0),
    "step_epochs": Range(1),
    "gamma": Range(0, 1, open_low=True),
    "patience": Range(0),
    "peak": Range(0, 1),
    "start": Range(0, 1),
    "final": Range(0, 1),
}


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer and what is done to the gradient before it."""

    name: Literal["sgd", "adam", "adamw", "muon"] = "sgd"
    """sgd, adam (decay added to the gradient), adamw (decoupled), or muon (matrices; sgd for the rest)."""
    lr: float = 0.1
    """Peak learning rate; the schedule multiplies it."""
    momentum: float = 0.9
    """sgd and muon's sgd part: momentum."""
    nesterov: bool = False
    """sgd: Nesterov momentum."""
    betas: tuple[float, float] = (0.9, 0.999)
    """adam, adamw: decay rates of the two moments."""
    weight_decay: float = 0.0
    """Decay of the weights. muon's matrices: decoupled, and only where no BatchNorm follows (it takes out scale)."""
    decay_all: bool = True
    """Decay also biases and BatchNorm's weights (as torch does when nothing is said)."""
    head_lr_factor: float = 1.0
    """Learning rate of the last layer (torchvision nets: of the classifier) relative to lr."""
    bias_lr_factor: float = 1.0
    """Learning rate of BatchNorm's biases relative to lr."""
    muon_lr: float = 0.24
    """muon: learning rate of the convolution and matrix weights."""
    muon_momentum: float = 0.6
    """muon: momentum of the convolution and matrix weights."""
    clip_norm: float = 0.0
    """Scale the gradient down to this norm if it is longer (0: off)."""
    accumulate: int = 1
    """Split each rank's share of a batch into N parts and add their gradients: less memory, same step."""
    freeze: tuple[str, ...] = ()
    """Layers that stop learning after a share of the training: body.0@0.4 body.2@0.8."""

    def __post_init__(self) -> None:
        conform(self, "optim")
        require_ranges(self, "optim", OPTIM_RANGES)
        require(
            not (self.nesterov and self.momentum == 0),
            "optim.nesterov is set and optim.momentum is 0",
            "Nesterov's step looks ahead along the momentum",
            "Set --optim.momentum 0.9, or drop --optim.nesterov",
        )
        moments("optim.freeze", self.freeze, "--optim.freeze body.0@0.4 body.2@0.8")

    @property
    def freeze_after(self) -> dict[str, float]:
        """For each layer of `freeze` its share of the training."""
        return moments("optim.freeze", self.freeze, "")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The learning rate over time, as a multiplier of optim.lr."""

    name: Literal["constant", "step", "exponential", "cosine", "linear", "onecycle", "plateau"] = "constant"
    """constant, step, exponential, cosine, linear, onecycle (cosine up and down), plateau."""
    every: Literal["step", "epoch"] = "epoch"
    """Whether the multiplier moves each optimizer step or only between epochs."""
    warmup_epochs: float = 0.0
    """Rise linearly from 0 over this many epochs first, step by step."""
    step_epochs: int = 10
    """step: multiply by gamma every N epochs."""
    gamma: float = 0.1
    """step, exponential (per epoch), plateau: the factor."""
    patience: int = 2
    """plateau: epochs without improvement that are borne before the next one multiplies by gamma."""
    peak: float = 0.3
    """onecycle: fraction of the training at which the peak is reached."""
    start: float = 0.04
    """onecycle: multiplier at the start."""
    final: float = 0.0
    """cosine, linear, onecycle: multiplier at the end."""

    def __post_init__(self) -> None:
        conform(self, "schedule")
        require_ranges(self, "schedule", SCHEDULE_RANGES)
        require(
            not (self.name == "onecycle" and self.warmup_epochs),
            f"schedule.warmup_epochs is {self.warmup_epochs} with onecycle",
            "onecycle has its own rise",
            "Set --schedule.peak instead",
        )
