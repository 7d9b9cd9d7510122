"""DataConfig and AugmentConfig: which images, and what happens to them before the network sees them."""

from dataclasses import dataclass
from typing import Literal

from distcifar.config.values import Range, conform, moments, require, require_range, require_ranges

DATA_RANGES = {
    "validation": Range(0),
    "train_first": Range(0),
    "size": Range(0, 4096),
    "split_seed": Range(0, 2**63 - 1),
}
AUGMENT_RANGES = {
    "crop_padding": Range(0, 64),
    "cutout": Range(0, 512),
    "random_resized_crop": Range(0, 1024),
    "center_crop": Range(0, 1024),
    "resize": Range(0, 1024),
    "brightness": Range(0, 1),
    "contrast": Range(0, 1),
    "saturation": Range(0, 1),
    "mixup": Range(0, 1),
    "cutmix": Range(0, 1),
    "hue": Range(0, 0.5),
    "rotation": Range(0, 180),
}


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
    storage: Literal["raw", "jpeg"] = "raw"
    """How prepared images are kept: their pixels, or JPEGs: several times smaller, slower to read, other pixels."""
    normalize: Literal["measured", "half", "imagenet", "cifar10", "none"] = "measured"
    """Channel mean and std: of the training images, 0.5/0.5, ImageNet's, the common CIFAR-10 ones, or 0/1."""

    def __post_init__(self) -> None:
        conform(self, "data")
        require_ranges(self, "data", DATA_RANGES)
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
    progressive: tuple[str, ...] = ()
    """Train on smaller pictures first, N x N pixels until a share of the training: 24@0.25 28@0.4."""
    mixup: float = 0.0
    """Beta(a, a) parameter of mixup, 0 < a <= 1 (0: off)."""
    cutmix: float = 0.0
    """Beta(a, a) parameter of cutmix, 0 < a <= 1 (0: off)."""

    def __post_init__(self) -> None:
        conform(self, "augment")
        require_ranges(self, "augment", AUGMENT_RANGES)
        require(
            not (self.mixup and self.cutmix),
            f"augment.mixup is {self.mixup} and augment.cutmix is {self.cutmix}",
            "An image is mixed in one way",
            "Set one of them to 0",
        )
        require(
            not self.center_crop or bool(self.random_resized_crop or self.resize),
            f"augment.center_crop is {self.center_crop} alone",
            "Training and evaluation give the model pictures of one size",
            "Also set --augment.random-resized-crop or --augment.resize",
        )
        require(
            not (self.crop_padding and self.random_resized_crop),
            "augment.crop_padding and augment.random_resized_crop are both set",
            "An image is cropped once",
            "Set one of them to 0",
        )
        for side in moments("augment.progressive", self.progressive, "--augment.progressive 24@0.25 28@0.4"):
            require(side.isdecimal(), f"augment.progressive has {side!r}", "A side is a number of pixels", "Correct it")
            require_range("augment.progressive", int(side), 1, 1024)

    def side_at(self, share: float) -> int:
        """The side in pixels of training pictures at `share` (0 to 1) of the training; 0: as they are."""
        until = moments("augment.progressive", self.progressive, "")
        ahead = [(end, int(side)) for side, end in until.items() if share < end]
        return min(ahead)[1] if ahead else 0
