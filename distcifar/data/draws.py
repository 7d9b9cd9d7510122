"""What the random numbers of the plan mean for an image: crops, flips, colours, boxes, partners.

Every draw is a pure function of (seed, epoch, sample id) and of the recipe (contract 2).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from distcifar.config import AugmentConfig
from distcifar.data.plan import Ids, Slot, betas, integers, uniforms

if TYPE_CHECKING:
    from torch import Tensor

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Drawn: TypeAlias = "NDArray[Any] | Tensor"  # drawn in numpy; a tensor once it is on a device (data/transfer.py)

RESIZED_CROP_ATTEMPTS = 10  # as torchvision's RandomResizedCrop


@dataclass(frozen=True)
class Moves:
    """Where the pixels of each of n samples come from. Offsets in pixels; cutout centres are -1 when off."""

    shift_y: Drawn
    shift_x: Drawn
    flip: Drawn
    cut_y: Drawn
    cut_x: Drawn


@dataclass(frozen=True)
class Colours:
    """Factors around 1 (hue: turns, around 0) and the angle in degrees for each of n samples."""

    brightness: Drawn
    contrast: Drawn
    saturation: Drawn
    hue: Drawn
    angle: Drawn


@dataclass(frozen=True)
class Draws:
    """All that happens to each of n samples on its own; None: the recipe does not ask for it."""

    moves: Moves
    colours: Colours | None
    boxes: "Drawn | None"  # float64 [n, 4], as draw_boxes gives them


@dataclass(frozen=True)
class Mixture:
    """How each of n samples is mixed with its partner."""

    own_share: Drawn  # float64 [n], lambda; of cutmix the share of the pixels that stay
    boxes: "Drawn | None"  # int64 [n, 4], cutmix: first row, last row + 1, first column, last column + 1 of the partner


def draw_moves(config: AugmentConfig, seed: int, epoch: int, ids: Ids, size: int) -> Moves:
    """The moves of samples `ids` in epoch `epoch`; `size` is the side of the picture that is cut out of."""
    off = np.zeros(len(ids), dtype=np.int64)
    shift_y = shift_x = off
    if config.crop_padding:
        window = 2 * config.crop_padding + 1
        shift_y = integers(seed, epoch, ids, Slot.CROP_Y, window) - config.crop_padding
        shift_x = integers(seed, epoch, ids, Slot.CROP_X, window) - config.crop_padding
    flip = off.astype(bool)
    if config.flip == "random":
        flip = uniforms(seed, epoch, ids, Slot.FLIP) < 0.5
    elif config.flip == "alternate":  # the coin is thrown once; then every other epoch is mirrored
        flip = (integers(seed, 0, ids, Slot.FLIP, 2) + epoch) % 2 == 1
    cut_y = cut_x = off - 1
    if config.cutout:
        cut_y = integers(seed, epoch, ids, Slot.CUTOUT_Y, size)
        cut_x = integers(seed, epoch, ids, Slot.CUTOUT_X, size)
    return Moves(shift_y, shift_x, flip, cut_y, cut_x)


def draw_colours(config: AugmentConfig, seed: int, epoch: int, ids: Ids) -> Colours:
    """The colour factors and rotation angles of samples `ids` in epoch `epoch`."""

    def around(centre: float, width: float, slot: Slot) -> Floats:
        return centre + width * (2 * uniforms(seed, epoch, ids, slot) - 1)

    return Colours(
        brightness=around(1, config.brightness, Slot.BRIGHTNESS),
        contrast=around(1, config.contrast, Slot.CONTRAST),
        saturation=around(1, config.saturation, Slot.SATURATION),
        hue=around(0, config.hue, Slot.HUE),
        angle=around(0, config.rotation, Slot.ANGLE),
    )


def draw_boxes(seed: int, epoch: int, ids: Ids, size: int) -> Floats:
    """Crop boxes of 8-100 % of the area at aspect 3/4-4/3: float64 [n, 4] as top, left, height, width.

    torchvision's RandomResizedCrop: ten attempts, then the whole image (which is square here).
    """
    boxes = np.tile([0.0, 0.0, size, size], (len(ids), 1))
    open_ = np.arange(len(ids))
    for attempt in range(RESIZED_CROP_ATTEMPTS):
        slot = Slot.RESIZED_CROP + 4 * attempt
        u = [uniforms(seed, epoch, ids[open_], slot + k) for k in range(4)]
        area = (0.08 + 0.92 * u[0]) * size * size
        aspect = np.exp(np.log(3 / 4) + (np.log(4 / 3) - np.log(3 / 4)) * u[1])
        width, height = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
        fits = (width >= 1) & (height >= 1) & (width <= size) & (height <= size)
        top, left = np.floor(u[2] * (size - height + 1)), np.floor(u[3] * (size - width + 1))
        boxes[open_[fits]] = np.stack([top, left, height, width], axis=1)[fits]
        open_ = open_[~fits]
    return boxes


def draw_mix(config: AugmentConfig, seed: int, epoch: int, ids: Ids, num_samples: int) -> tuple[Ids, Floats]:
    """Each sample's partner id and its own share in the mixture (lambda): int64 [n], float64 [n].

    The partner is any sample of the training set, so the result does not depend on the batch.
    """
    alpha = config.mixup or config.cutmix
    partners = integers(seed, epoch, ids, Slot.PARTNER, num_samples)
    return partners, betas(seed, epoch, ids, Slot.MIX, alpha)


def cutmix_boxes(seed: int, epoch: int, ids: Ids, own_share: Floats, size: int) -> tuple[Ints, Floats]:
    """The boxes of area 1 - lambda that partners fill (Yun et al. 2019): int64 [n, 4], and the shares that are left.

    Centres are anywhere in the picture of `size` pixels a side; boxes are clipped at its border, so that the share is
    counted in pixels.
    """
    half = np.sqrt(1 - own_share) / 2

    def span(slot: Slot) -> list[Floats]:
        centre = uniforms(seed, epoch, ids, slot)
        return [np.rint(np.clip(edge, 0, 1) * size) for edge in (centre - half, centre + half)]

    (top, bottom), (left, right) = span(Slot.CUTMIX_Y), span(Slot.CUTMIX_X)
    boxes = np.stack([top, bottom, left, right], axis=1).astype(np.int64)
    return boxes, 1 - (bottom - top) * (right - left) / size**2
