"""From stored uint8 images to the float batch that the model sees, in training and in evaluation."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distcifar.config import AugmentConfig
from distcifar.config.values import require
from distcifar.data import augment
from distcifar.data.draws import Draws, Mixture, Moves, cutmix_boxes, draw_boxes, draw_colours, draw_mix, draw_moves
from distcifar.data.plan import Ids
from distcifar.errors import ConfigError

Channels = tuple[float, ...]
Array = NDArray[Any]

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
        return bool(self._jitters or c.rotation or c.random_resized_crop or c.resize)

    def output_size(self) -> int:
        """Side of the images that the model is given."""
        c = self.config
        return c.resize or c.random_resized_crop or self.size

    def smallest_size(self) -> int:
        """The least side of the images that the model is given in training."""
        return min([self.output_size(), *(int(item.partition("@")[0]) for item in self.config.progressive)])

    def draw(self, ids: Ids, epoch: int) -> Draws:
        """What happens to each of the samples `ids` in epoch `epoch`: arrays of [n]."""
        c = self.config
        return Draws(
            moves=draw_moves(c, self.seed, epoch, ids, self.output_size()),
            colours=draw_colours(c, self.seed, epoch, ids) if self._jitters or c.rotation else None,
            boxes=draw_boxes(self.seed, epoch, ids, self.size) if c.random_resized_crop else None,
        )

    def draw_mix(self, ids: Ids, epoch: int) -> tuple[Ids, Mixture | None]:
        """The ids that samples `ids` are mixed with in epoch `epoch` (int64 [n]), and how; or [0] and None."""
        c = self.config
        if not self.mixes:
            return ids[:0], None
        partners, own_share = draw_mix(c, self.seed, epoch, ids, self.num_samples)
        if c.mixup:
            return partners, Mixture(own_share, None)
        boxes, own_share = cutmix_boxes(self.seed, epoch, ids, own_share, self.output_size())
        return partners, Mixture(own_share, boxes)

    def train(self, images: Tensor, rows: Tensor, draws: Draws) -> Tensor:
        """Augmented float32 [n, C, S, S] of `images[rows]` (uint8 [N, H, W, C]); on a GPU `draws` are there as well."""
        if self.interpolates:
            in_one_pass = self.device.type == "cpu" and not self.config.random_resized_crop and not self.config.resize
            return (self._by_colour_kernel if in_one_pass else self._train_interpolated)(images, rows, draws)
        if self.device.type == "cpu":
            return self._by_kernel(images, rows, draws.moves, self.config.cutout)
        moved = augment.normalise(self._moved(images, rows, draws.moves), self._table)
        return augment.cut_out(moved, draws.moves, self.config.cutout) if self.config.cutout else moved

    def mix(self, images: Tensor, partners: Tensor, mixture: Mixture) -> Tensor:
        """The mixture of two augmented batches float [n, C, S, S]."""
        if mixture.boxes is None:
            return augment.mixup(images, partners, mixture.own_share)
        return augment.cutmix(images, partners, mixture.boxes)

    def evaluate(self, images: Tensor, rows: Tensor) -> Tensor:
        """Normalised float32 [n, C, S, S] of `images[rows]`, cropped and resized as the recipe says."""
        side = self.config.resize or self.config.random_resized_crop
        if not side and not self.config.center_crop:
            return self._unchanged(images, rows)
        pixels = _unit(images[rows])
        if self.config.center_crop:
            pixels = augment.center_crop(pixels, self.config.center_crop)
        if self.config.random_resized_crop and self.config.center_crop != self.config.random_resized_crop:
            pixels = augment.resize(pixels, self.config.random_resized_crop)
        if side and pixels.shape[2] != side:
            pixels = augment.resize(pixels, side)
        return self._standardise(pixels)

    @property
    def _jitters(self) -> bool:
        c = self.config
        return bool(c.brightness or c.contrast or c.saturation or c.hue)

    # What does not change is on the device once: a copy for each batch would make the host wait for a GPU.

    @cached_property
    def _values(self) -> NDArray[np.float32]:
        return augment.normalisation_table(self.mean, self.std)

    @cached_property
    def _table(self) -> Tensor:
        return torch.from_numpy(self._values).to(self.device)

    @cached_property
    def _mean_and_std(self) -> tuple[Tensor, Tensor]:
        mean, std = torch.tensor([self.mean, self.std], device=self.device)[:, :, None, None]
        return mean, std

    def _unchanged(self, images: Tensor, rows: Tensor) -> Tensor:
        """`images[rows]`, normalised."""
        if self.device.type != "cpu":
            return augment.normalise(images[rows], self._table)
        still = draw_moves(AugmentConfig(), 0, 0, np.zeros(len(rows), dtype=np.int64), self.size)
        return self._by_kernel(images, rows, still, 0)

    def _moved(self, images: Tensor, rows: Tensor, moves: Moves) -> Tensor:
        """uint8 [n, H, W, C] of `images[rows]`; without moves, where nothing is cropped or flipped."""
        c = self.config
        if not c.crop_padding and c.flip == "none":
            return images[rows]
        return augment.move(images, rows, moves, reflect=c.crop_fill == "reflect")

    def _by_kernel(self, images: Tensor, rows: Tensor, moves: Moves, cutout: int) -> Tensor:
        from distcifar.data.kernel import fill_batch  # numba: 1 s to import, not wanted on a GPU

        out = np.empty((len(rows), *images.shape[1:]), dtype=np.float32)
        reflect = self.config.crop_fill == "reflect"
        fill_batch(out, images.numpy(), rows.numpy(), self._values, *_arrays(moves), cutout, reflect)
        return torch.from_numpy(out).permute(0, 3, 1, 2)

    def _by_colour_kernel(self, images: Tensor, rows: Tensor, draws: Draws) -> Tensor:
        from distcifar.data.colour_kernel import colour_batch

        c, colours = self.config, draws.colours
        assert colours is not None  # what neither crops nor resizes, and computes, has colours
        out = np.empty((len(rows), *images.shape[1:]), dtype=np.float32)
        jitter = (colours.brightness, colours.contrast, colours.saturation, colours.hue)
        factors = np.stack([np.asarray(values, dtype=np.float32) for values in jitter], axis=1)
        mean, std = np.array([self.mean, self.std], dtype=np.float32)
        colour_batch(
            out, images.numpy(), rows.numpy(), mean, std, *_arrays(draws.moves), c.cutout, c.crop_fill == "reflect",
            factors, c.hue > 0, np.asarray(colours.angle, dtype=np.float32),
        )  # fmt: skip
        return torch.from_numpy(out).permute(0, 3, 1, 2)

    def _train_interpolated(self, images: Tensor, rows: Tensor, draws: Draws) -> Tensor:
        c = self.config
        pixels = _unit(self._moved(images, rows, draws.moves))
        if draws.colours is not None and self._jitters:
            pixels = augment.jitter(pixels, draws.colours, hue=c.hue > 0)
        if draws.colours is not None and c.rotation:
            pixels = augment.rotate(pixels, draws.colours.angle)
        if draws.boxes is not None:
            pixels = augment.crop_and_resize(pixels, draws.boxes, c.random_resized_crop)
        if c.resize:
            pixels = augment.resize(pixels, c.resize)
        pixels = self._standardise(pixels)
        return augment.cut_out(pixels, draws.moves, c.cutout) if c.cutout else pixels

    def _standardise(self, pixels: Tensor) -> Tensor:
        mean, std = self._mean_and_std
        return ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)


def _arrays(moves: Moves) -> tuple[Array, Array, Array, Array, Array]:
    """The moves as the kernels take them."""
    shifts = np.asarray(moves.shift_y), np.asarray(moves.shift_x)
    return *shifts, np.asarray(moves.flip), np.asarray(moves.cut_y), np.asarray(moves.cut_x)


def _unit(pixels: Tensor) -> Tensor:
    """uint8 [n, H, W, C] -> float32 [n, C, H, W] in 0..1."""
    return pixels.permute(0, 3, 1, 2).float() / 255
