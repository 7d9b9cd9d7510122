"""From stored uint8 images to the float batch that the model sees, in training and in evaluation."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from distcifar.config import AugmentConfig
from distcifar.config.values import require
from distcifar.data import augment
from distcifar.data.draws import Floats, Moves, draw_boxes, draw_colours, draw_mix, draw_moves
from distcifar.data.plan import Ids, Slot, uniforms
from distcifar.errors import ConfigError

Channels = tuple[float, ...]

NORMALISATIONS: dict[str, tuple[Channels, Channels]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),  # the web's; the true std is 0.247...
}


def normalisation(name: str, mean: Channels, std: Channels) -> tuple[Channels, Channels]:
    """Channel mean and std (0-1 scale) of DataConfig.normalize; `mean` and `std` are the measured ones.

    Raises ConfigError for three-channel constants on images of another kind.
    """
    if name == "measured":
        return mean, tuple(max(s, 1 / 255) for s in std)  # a constant channel stays finite
    if name in ("half", "none"):
        centre, scale = (0.5, 0.5) if name == "half" else (0.0, 1.0)
        return (centre,) * len(mean), (scale,) * len(mean)
    if len(mean) != 3:
        raise ConfigError(
            f"data.normalize is {name!r} and the images have {len(mean)} channel(s)",
            f"The {name} constants are for three channels",
            "Use --data.normalize measured",
        )
    return NORMALISATIONS[name]


@dataclass(frozen=True)
class PixelPipeline:
    """The pixel side of a recipe on one device. `size` is the stored images' side."""

    config: AugmentConfig
    seed: int
    size: int
    num_samples: int  # of the training split: partners of mixup and cutmix are drawn from it
    mean: Channels
    std: Channels
    device: torch.device

    def __post_init__(self) -> None:
        c = self.config
        require(
            c.center_crop <= self.size,
            f"augment.center_crop is {c.center_crop}",
            f"The images have {self.size} pixels a side",
            "Crop less",
        )
        require(
            not (c.crop_fill == "reflect" and c.crop_padding >= self.size),
            f"augment.crop_padding is {c.crop_padding}",
            f"Images of {self.size} pixels a side can be mirrored by {self.size - 1} at most",
            "Pad less",
        )

    @property
    def mixes(self) -> bool:
        """Whether training images are mixed with partners."""
        return bool(self.config.mixup or self.config.cutmix)

    @property
    def interpolates(self) -> bool:
        """Whether training pixels are computed with (colour, rotation, resizing), not only moved."""
        c = self.config
        colours = c.brightness or c.contrast or c.saturation or c.hue
        return bool(colours or c.rotation or c.random_resized_crop or c.resize)

    def output_size(self) -> int:
        """Side of the images that the model is given."""
        c = self.config
        return c.resize or c.random_resized_crop or self.size

    def train(self, images: Tensor, rows: Tensor, ids: Ids, epoch: int) -> Tensor:
        """Augmented float32 [n, C, S, S] of `images[rows]` (uint8 [N, H, W, C]), the samples `ids`."""
        moves = draw_moves(self.config, self.seed, epoch, ids, self.output_size())
        if self.interpolates:
            return self._train_interpolated(images, rows, ids, epoch, moves)
        return self._move(images, rows, moves)

    def evaluate(self, images: Tensor, rows: Tensor) -> Tensor:
        """Normalised float32 [n, C, S, S] of `images[rows]`, cropped and resized as the recipe says."""
        still = replace(self.config, crop_padding=0, flip="none", cutout=0)
        moves = draw_moves(still, 0, 0, np.zeros(len(rows), dtype=np.int64), self.size)
        side = self.config.resize or self.config.random_resized_crop
        if not side and not self.config.center_crop:
            return replace(self, config=still)._move(images, rows, moves)
        pixels = _unit(images[rows])
        if self.config.center_crop:
            pixels = augment.center_crop(pixels, self.config.center_crop)
        if self.config.random_resized_crop and self.config.center_crop != self.config.random_resized_crop:
            pixels = augment.resize(pixels, self.config.random_resized_crop)
        if side and pixels.shape[2] != side:
            pixels = augment.resize(pixels, side)
        return self._standardise(pixels)

    def draw_mix(self, ids: Ids, epoch: int) -> tuple[Ids, Floats]:
        """The ids that samples `ids` are mixed with in epoch `epoch` and their own shares: both [n], or [0] if none."""
        if not self.mixes:
            return ids[:0], np.empty(0)
        return draw_mix(self.config, self.seed, epoch, ids, self.num_samples)

    def mix(self, images: Tensor, partners: Tensor, own_share: Floats, ids: Ids, epoch: int) -> tuple[Tensor, Tensor]:
        """The mixture of two augmented batches, and each image's own share float32 [n]; cutmix rounds it to pixels."""
        if self.config.mixup:
            mixed = augment.mixup(images, partners, own_share)
        else:
            centre_y = uniforms(self.seed, epoch, ids, Slot.CUTMIX_Y)
            centre_x = uniforms(self.seed, epoch, ids, Slot.CUTMIX_X)
            mixed, own_share = augment.cutmix(images, partners, own_share, centre_y, centre_x)
        return mixed, torch.as_tensor(own_share, dtype=torch.float32, device=self.device)

    def _move(self, images: Tensor, rows: Tensor, moves: Moves) -> Tensor:
        table = augment.normalisation_table(self.mean, self.std)
        reflect = self.config.crop_fill == "reflect"
        if self.device.type != "cpu":
            pixels = augment.move(images, rows, moves, reflect=reflect)
            moved = augment.normalise(pixels, torch.from_numpy(table).to(self.device))
            return augment.cut_out(moved, moves, self.config.cutout) if self.config.cutout else moved
        from distcifar.data.kernel import fill_batch  # numba: 1 s to import, not wanted on a GPU

        out = np.empty((len(rows), *images.shape[1:]), dtype=np.float32)
        fill_batch(
            out, images.numpy(), rows.numpy(), table, moves.shift_y, moves.shift_x, moves.flip,
            moves.cut_y, moves.cut_x, self.config.cutout, reflect,
        )  # fmt: skip
        return torch.from_numpy(out).permute(0, 3, 1, 2)

    def _train_interpolated(self, images: Tensor, rows: Tensor, ids: Ids, epoch: int, moves: Moves) -> Tensor:
        c = self.config
        pixels = _unit(augment.move(images, rows, moves, reflect=c.crop_fill == "reflect"))
        colours = draw_colours(c, self.seed, epoch, ids)
        if c.brightness or c.contrast or c.saturation or c.hue:
            pixels = augment.jitter(pixels, colours)
        if c.rotation:
            pixels = augment.rotate(pixels, colours.angle)
        if c.random_resized_crop:
            boxes = draw_boxes(self.seed, epoch, ids, self.size)
            pixels = augment.crop_and_resize(pixels, boxes, c.random_resized_crop)
        if c.resize:
            pixels = augment.resize(pixels, c.resize)
        pixels = self._standardise(pixels)
        return augment.cut_out(pixels, moves, c.cutout) if c.cutout else pixels

    def _standardise(self, pixels: Tensor) -> Tensor:
        mean, std = pixels.new_tensor(self.mean), pixels.new_tensor(self.std)
        normal = (pixels - mean[:, None, None]) / std[:, None, None]
        return normal.contiguous(memory_format=torch.channels_last)


def _unit(pixels: Tensor) -> Tensor:
    """uint8 [n, H, W, C] -> float32 [n, C, H, W] in 0..1."""
    return pixels.permute(0, 3, 1, 2).float() / 255
