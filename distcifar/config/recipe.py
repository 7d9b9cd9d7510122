"""Recipe: everything that changes the numbers of a training run, and nothing else.

The same recipe runs on 1 or 16 workers: the batch size is the global one, schedules speak epochs. The string under
each field is its `--help` text (tyro reads it), so it says what changes when the field does.
"""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Literal

from distcifar.config.values import require, require_choice, require_range, to_dict

ModelName = Literal[
    "linear",
    "mlp",
    "cnn",
    "resnet",
    "resnet-d2l",
    "whitened",
    "torchvision-resnet18",
    "torchvision-vgg13_bn",
]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network. Fields that the chosen family does not use are ignored by it (models/ says which)."""

    name: ModelName = "resnet"
    """Family: linear, mlp, cnn, resnet, resnet-d2l, whitened, or a pretrained torchvision net."""
    layout: tuple[str, ...] = ()
    """cnn: convolutions by output channels, and M for a 2x2 max-pool: 32 M 64 M."""
    kernel: int = 3
    """cnn: convolution kernel size in pixels."""
    padding: int = 1
    """cnn: zero padding of each convolution in pixels."""
    batchnorm: bool = True
    """cnn: BatchNorm after each convolution."""
    widths: tuple[int, ...] = (64, 128, 256, 512)
    """resnet, whitened: channels of each stage."""
    blocks: int = 2
    """resnet: residual blocks per stage."""
    stem_pool: bool = False
    """resnet: 3x3 stride-2 max-pool after the first convolution (halves every later map)."""
    hidden: tuple[int, ...] = ()
    """mlp, cnn: sizes of the fully connected hidden layers."""
    dropout: float = 0.0
    """mlp, cnn: dropout probability (mlp: after the first two hidden layers; cnn: after each)."""
    init: Literal["default", "xavier", "dirac"] = "default"
    """Initial weights: torch's own, Xavier-uniform, or identity-like convolutions."""
    pretrained: bool = False
    """torchvision nets: start from ImageNet weights."""
    weights: str = ""
    """torchvision nets: a local weight file (.pth or .safetensors) instead of the download."""
    freeze: bool = False
    """torchvision nets: the feature extractor does not learn."""
    freeze_bn_stats: bool = False
    """Frozen features: also keep BatchNorm's running statistics as they were."""

    def __post_init__(self) -> None:
        require_choice("model.name", self.name, ModelName.__args__)  # type: ignore[attr-defined]
        require_range("model.dropout", self.dropout, 0.0, 0.95)
        require_range("model.kernel", self.kernel, 1, 15)
        require_range("model.padding", self.padding, 0, 15)
        require_range("model.blocks", self.blocks, 1, 64)
        for size in (*self.widths, *self.hidden):
            require_range("model.widths/hidden", size, 1, 65536)
        for item in self.layout:
            require(
                item == "M" or (item.isdecimal() and int(item) > 0),
                f"model.layout has {item!r}",
                "Each item is a channel count or M",
                "Write, for example, --model.layout 32 M 64 M",
            )
        require(
            not (self.freeze and not self.pretrained),
            "model.freeze is set without model.pretrained",
            "Frozen features must come from pretrained weights",
            "Add --model.pretrained, or drop --model.freeze",
        )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, and how they are split and normalised."""

    dataset: str = "cifar10"
    """cifar10, cifar100, mnist, fashion-mnist, synthetic, npz:FILE, or an ImageFolder directory."""
    validation: int = 5000
    """Training images held out, stratified by class, to choose the best model (0: see --select-on)."""
    train_first: int = 0
    """Train on the first N training images only (0: all); validation then comes from the rest."""
    size: int = 0
    """Store images at N x N pixels (0: as they are; needed when an ImageFolder mixes sizes)."""
    split_seed: int = 0
    """Seed of the validation split."""
    normalize: Literal["measured", "half", "imagenet", "cifar10", "none"] = "measured"
    """Channel mean and std: of the training images, 0.5/0.5, ImageNet's, the common CIFAR-10 ones, or 0/1."""

    def __post_init__(self) -> None:
        require_range("data.validation", self.validation, 0)
        require_range("data.train_first", self.train_first, 0)
        require_range("data.size", self.size, 0, 4096)
        require_range("data.split_seed", self.split_seed, 0, 2**63 - 1)
        require_choice("data.normalize", self.normalize, ("measured", "half", "imagenet", "cifar10", "none"))
        require(
            bool(self.dataset),
            "data.dataset is empty",
            "A data set is needed",
            "Give --data.dataset cifar10",
        )


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random changes to training images. Each is a pure function of (seed, epoch, sample)."""

    crop_padding: int = 0
    """Pad by N pixels, then crop a random window of the original size (0: off)."""
    crop_fill: Literal["zeros", "reflect"] = "zeros"
    """What the padding of the crop holds: black pixels or the mirrored image."""
    flip: Literal["none", "random", "alternate"] = "none"
    """Mirror left-right: never, by coin, or every other epoch after a first coin."""
    cutout: int = 0
    """Side in pixels of a square set to the channel mean at a random place (0: off)."""
    brightness: float = 0.0
    """Brightness factor is drawn from 1 - B to 1 + B."""
    contrast: float = 0.0
    """Contrast factor is drawn from 1 - C to 1 + C."""
    saturation: float = 0.0
    """Saturation factor is drawn from 1 - S to 1 + S."""
    hue: float = 0.0
    """Hue is turned by -H to +H of the whole circle (0.5 at most)."""
    rotation: float = 0.0
    """Rotate by -R to +R degrees, bilinear, black outside."""
    random_resized_crop: int = 0
    """Crop 8-100 % of the area at aspect 3/4-4/3 and resize to N x N (0: off)."""
    center_crop: int = 0
    """Evaluation only: crop the central N x N pixels (0: off)."""
    resize: int = 0
    """After cropping, in training and evaluation: resize to N x N, bilinear (0: off)."""
    mixup: float = 0.0
    """Beta(a, a) parameter of mixup, 0 < a <= 1 (0: off)."""
    cutmix: float = 0.0
    """Beta(a, a) parameter of cutmix, 0 < a <= 1 (0: off)."""

    def __post_init__(self) -> None:
        require_choice("augment.flip", self.flip, ("none", "random", "alternate"))
        require_choice("augment.crop_fill", self.crop_fill, ("zeros", "reflect"))
        for name, high in (("crop_padding", 64), ("cutout", 512), ("random_resized_crop", 1024)):
            require_range(f"augment.{name}", getattr(self, name), 0, high)
        for name in ("center_crop", "resize"):
            require_range(f"augment.{name}", getattr(self, name), 0, 1024)
        for name in ("brightness", "contrast", "saturation", "mixup", "cutmix"):
            require_range(f"augment.{name}", getattr(self, name), 0.0, 1.0)
        require_range("augment.hue", self.hue, 0.0, 0.5)
        require_range("augment.rotation", self.rotation, 0.0, 180.0)
        require(
            not (self.mixup and self.cutmix),
            f"augment.mixup is {self.mixup} and augment.cutmix is {self.cutmix}",
            "An image is mixed in one way",
            "Set one of them to 0",
        )
        require(
            not (self.crop_padding and self.random_resized_crop),
            "augment.crop_padding and augment.random_resized_crop are both set",
            "An image is cropped once",
            "Set one of them to 0",
        )


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
    """Decay of the weights."""
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

    def __post_init__(self) -> None:
        require_choice("optim.name", self.name, ("sgd", "adam", "adamw", "muon"))
        require_range("optim.lr", self.lr, 0.0, 100.0, open_low=True)
        require_range("optim.muon_lr", self.muon_lr, 0.0, 100.0, open_low=True)
        require_range("optim.momentum", self.momentum, 0.0, 0.9999)
        require_range("optim.muon_momentum", self.muon_momentum, 0.0, 0.9999)
        require_range("optim.weight_decay", self.weight_decay, 0.0, 10.0)
        require_range("optim.head_lr_factor", self.head_lr_factor, 0.0, 1e4, open_low=True)
        require_range("optim.bias_lr_factor", self.bias_lr_factor, 0.0, 1e4, open_low=True)
        require_range("optim.clip_norm", self.clip_norm, 0.0)
        require_range("optim.accumulate", self.accumulate, 1, 4096)
        for beta in self.betas:
            require_range("optim.betas", beta, 0.0, 0.99999)
        require(
            not (self.nesterov and self.momentum == 0),
            "optim.nesterov is set and optim.momentum is 0",
            "Nesterov's step looks ahead along the momentum",
            "Set --optim.momentum 0.9, or drop --optim.nesterov",
        )


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
        names = ("constant", "step", "exponential", "cosine", "linear", "onecycle", "plateau")
        require_choice("schedule.name", self.name, names)
        require_choice("schedule.every", self.every, ("step", "epoch"))
        require_range("schedule.warmup_epochs", self.warmup_epochs, 0.0)
        require_range("schedule.step_epochs", self.step_epochs, 1)
        require_range("schedule.gamma", self.gamma, 0.0, 1.0, open_low=True)
        require_range("schedule.patience", self.patience, 0)
        require_range("schedule.peak", self.peak, 0.0, 1.0)
        require_range("schedule.start", self.start, 0.0, 1.0)
        require_range("schedule.final", self.final, 0.0, 1.0)
        require(
            not (self.name == "onecycle" and self.warmup_epochs),
            f"schedule.warmup_epochs is {self.warmup_epochs} with onecycle",
            "onecycle has its own rise",
            "Set --schedule.peak instead",
        )


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
    tta: Literal["none", "flip"] = "none"
    """Evaluation: average the logits of the image and its mirror image."""
    early_stop: int = 0
    """Stop after N epochs without a better validation metric (0: off)."""
    select_metric: Literal["accuracy", "loss"] = "accuracy"
    """The validation metric that names the best epoch."""
    select_on: Literal["validation", "test", "last"] = "validation"
    """Split that names the best epoch. test makes the result optimistic and marks the run; last takes the last."""
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
        require_range("epochs", self.epochs, 1, 100_000)
        require_range("batch_size", self.batch_size, 1, 1_000_000)
        require_range("seed", self.seed, 0, 2**63 - 1)
        require_range("label_smoothing", self.label_smoothing, 0.0, 0.99)
        require_range("ema_decay", self.ema_decay, 0.0, 0.99999)
        require_range("early_stop", self.early_stop, 0)
        require_choice("precision", self.precision, ("auto", "fp32", "bf16", "fp16"))
        require_choice("select_on", self.select_on, ("validation", "test", "last"))
        require(
            self.data.validation > 0 or self.select_on != "validation",
            "data.validation is 0",
            "The best model is chosen on validation images",
            "Hold some out (--data.validation 5000), or take the last epoch (--select-on last)",
        )
        watches = self.schedule.name == "plateau" or self.early_stop > 0
        require(
            not (watches and self.select_on == "last"),
            "select_on is last with a plateau schedule or early stopping",
            "These watch a metric of each epoch",
            "Use --select-on validation",
        )
        require(
            self.optim.accumulate <= self.batch_size,
            f"optim.accumulate is {self.optim.accumulate} and batch_size {self.batch_size}",
            "A batch splits into at most as many parts as it has images",
            "Lower --optim.accumulate",
        )

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All stages, the recipe's own first."""
        return (Stage(epochs=self.epochs, lr=self.optim.lr, schedule=self.schedule), *self.then)

    @property
    def total_epochs(self) -> int:
        """Epochs over all stages."""
        return sum(stage.epochs for stage in self.stages)

    def numbers(self) -> dict[str, Any]:
        """The fields that change the numbers, JSON-ready: all but name and texts."""
        texts = ("name", "description", "reported_accuracy")
        return {key: value for key, value in to_dict(self).items() if key not in texts}

    def digest(self) -> str:
        """A short name for exactly these numbers: 16 hex digits of sha256."""
        text = json.dumps(self.numbers(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
