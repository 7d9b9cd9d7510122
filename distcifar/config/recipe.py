"""Recipe: everything that changes the numbers of a training run, and nothing else.

The same recipe runs on 1 or 16 workers: the batch size is the global one, schedules speak epochs. The string under
each field is its `--help` text (tyro reads it), so it says what changes when the field does.
"""

import hashlib
import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from distcifar.config.inputs import AugmentConfig, DataConfig
from distcifar.config.model import ModelConfig
from distcifar.config.optim import OptimConfig, ScheduleConfig
from distcifar.config.values import Range, conform, require, require_range, require_ranges, to_dict

RANGES = {
    "epochs": Range(1, 100_000),
    "batch_size": Range(1, 1_000_000),
    "seed": Range(0, 2**63 - 1),
    "label_smoothing": Range(0, 0.99),
    "ema_decay": Range(0, 0.99999),
    "early_stop": Range(0),
    "spike_factor": Range(0),
    "hard_share": Range(0, 1, open_low=True),
    "hard_from": Range(0, 1),
}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A further stretch of training that starts from the best weights so far, with a fresh optimizer."""

    epochs: int
    """Length of the stage in epochs."""
    lr: float
    """Its peak learning rate."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Its schedule, over its own epochs."""

    def __post_init__(self) -> None:
        conform(self, "stage")
        require_range("stage.epochs", self.epochs, 1, 100_000)
        require_range("stage.lr", self.lr, 0.0, 100.0, open_low=True)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A named training recipe. Two recipes with equal `digest()` give equal numbers."""

    name: str
    """The name under which it is trained."""
    description: str = ""
    """Where it comes from, what was chosen where the source is silent, what it cost where measured."""
    reported_accuracy: float | None = None
    """Test accuracy that its origin reports, 0-1."""
    epochs: int = 10
    """Passes over the training images (of the first stage)."""
    batch_size: int = 128
    """Images per optimizer step over all workers together."""
    seed: int = 0
    """Seed of weights, order, augmentation and dropout."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the forward pass: auto takes bf16 where the hardware is faster with it (timed)."""
    label_smoothing: float = 0.0
    """Share of the target spread evenly over all classes."""
    ema_decay: float = 0.0
    """Per-step decay of an averaged copy of the weights that is evaluated instead (0: off)."""
    tta: Literal["none", "flip", "shift"] = "none"
    """Evaluation averages the logits of: the image; also its mirror image; where in doubt both, and both moved."""
    early_stop: int = 0
    """Stop after N epochs without a better validation metric (0: off)."""
    select_metric: Literal["accuracy", "loss"] = "accuracy"
    """The validation metric that names the best epoch."""
    select_on: Literal["validation", "test", "last"] = "validation"
    """Split that names the best epoch. test makes the result optimistic and marks the run; last takes the last."""
    on_divergence: Literal["stop", "rollback"] = "stop"
    """NaN, Inf or a jump of the loss: stop, or go back to the last checkpoint with half the rate, three times."""
    spike_factor: float = 0.0
    """A step's loss of more than N times the mean of the steps before counts as divergence (0: off)."""
    hard_share: float = 1.0
    """Later epochs go over this share of the training images only: those with the highest loss so far (1: all)."""
    hard_from: float = 0.5
    """Share of the epochs after which they do; those before, one at least, go over all images."""
    drop_last: bool = False
    """Leave out the incomplete last batch of an epoch."""
    sync_batchnorm: bool = False
    """GPUs: BatchNorm statistics over the global batch instead of each worker's share."""
    eval_mode_after_first_epoch: bool = False
    """Reproduces a common bug: BatchNorm and dropout stay in evaluation mode from epoch 2 on."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    then: tuple[Stage, ...] = ()
    """Further stages, each from the best weights so far."""

    def __post_init__(self) -> None:
        conform(self)
        require_ranges(self, "", RANGES)
        if self.reported_accuracy is not None:
            require_range("reported_accuracy", self.reported_accuracy, 0.0, 1.0)
        require(
            self.spike_factor == 0 or self.spike_factor >= 1.5,
            f"spike_factor is {self.spike_factor:g}",
            "Losses of single batches differ: a spike is at least 1.5 times their mean",
            "Set --spike-factor 3, or 0 to switch it off",
        )
        require(
            self.data.validation > 0 or self.select_on != "validation",
            "data.validation is 0",
            "The best model is chosen on validation images",
            "Hold some out (--data.validation 5000), or take the last epoch (--select-on last)",
        )
        watches = any(stage.schedule.name == "plateau" for stage in self.stages) or self.early_stop > 0
        require(
            not (watches and self.select_on == "last"),
            "select_on is last with a plateau schedule or early stopping",
            "These watch a metric of each epoch",
            "Use --select-on validation",
        )
        require(
            not self.augment.progressive or self.model.name not in ("linear", "mlp", "cnn"),
            f"augment.progressive is set and the model is {self.model.name}",
            "A net with fully connected layers takes pictures of one size",
            "Use a resnet or whitened, or drop --augment.progressive",
        )
        require(
            self.hard_share == 1 or not (self.augment.mixup or self.augment.cutmix),
            f"hard_share is {self.hard_share:g} with mixup or cutmix",
            "How hard an image is shows in its own loss, not in a mixture's",
            "Set --hard-share 1, or both mixtures to 0",
        )
        require(
            self.optim.accumulate <= self.batch_size,
            f"optim.accumulate is {self.optim.accumulate} and batch_size {self.batch_size}",
            "A batch splits into at most as many parts as it has images",
            "Lower --optim.accumulate",
        )
        require(
            not (self.early_stop and self.then),
            f"early_stop is {self.early_stop} and the recipe has further stages",
            "Early stopping ends a run, not a stage",
            "Set --early-stop 0",
        )

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All stages, the recipe's own first."""
        return (Stage(epochs=self.epochs, lr=self.optim.lr, schedule=self.schedule), *self.then)

    @property
    def total_epochs(self) -> int:
        """Epochs over all stages."""
        return sum(stage.epochs for stage in self.stages)

    def images_of(self, epoch: int, images: int) -> int:
        """How many of `images` training images epoch `epoch` (from 0) goes over."""
        if self.hard_share == 1 or epoch < self.whole_epochs:
            return images
        return max(1, round(self.hard_share * images))

    def passes(self, epochs: float) -> float:
        """How many times the training images are gone over in the first `epochs` epochs."""
        return min(epochs, self.whole_epochs) + max(0.0, epochs - self.whole_epochs) * self.hard_share

    @property
    def whole_epochs(self) -> int:
        """How many epochs at the start go over all training images, where not all do."""
        return max(1, math.ceil(self.hard_from * self.total_epochs))

    def numbers(self) -> dict[str, Any]:
        """The fields that change the numbers, JSON-ready: all but name and texts."""
        texts = ("name", "description", "reported_accuracy")
        return {key: value for key, value in to_dict(self).items() if key not in texts}

    def digest(self) -> str:
        """A short name for exactly these numbers: 16 hex digits of sha256."""
        text = json.dumps(self.numbers(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
