"""The users' trainings as one plain script: torch and numpy, nothing of distcifar.

What distcifar promises about order and random numbers (contracts 1 and 2, docstrings of data/plan.py and
data/draws.py) is written here a second time, in Python's own integers and image by image.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD, Adam, Optimizer

# ---- Random numbers: hashes of (seed, epoch, sample, what for)

BITS = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
CROP_Y, CROP_X, FLIP = 0, 1, 2
BRIGHTNESS, CONTRAST, SATURATION, HUE, ANGLE = 5, 6, 7, 8, 9
DROPOUT = 0xD0


def mix(z: int) -> int:
    """SplitMix64's finalizer."""
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & BITS
    z = (z ^ z >> 27) * 0x94D049BB133111EB & BITS
    return z ^ z >> 31


def chain(*words: int) -> int:
    state = 0
    for word in words:
        state = mix(state + GOLDEN + word & BITS)
    return state


def uniform(seed: int, epoch: int, sample: int, slot: int) -> float:
    """In [0, 1): 53 bits of a hash."""
    return (mix(mix(sample * GOLDEN + chain(seed, epoch, slot) & BITS)) >> 11) / 2**53


# ---- Pixels: one uint8 image [32, 32, 3] at a time


def plain(image: np.ndarray, draw: Callable[[int], float]) -> np.ndarray:
    """No augmentation."""
    return image / 255


def crop_and_flip(image: np.ndarray, draw: Callable[[int], float]) -> np.ndarray:
    """RandomCrop(32, padding=4) and RandomHorizontalFlip."""
    padded = np.zeros((40, 40, 3))
    padded[4:36, 4:36] = image
    top, left = int(draw(CROP_Y) * 9), int(draw(CROP_X) * 9)
    window = padded[top : top + 32, left : left + 32]
    return (window[:, ::-1] if draw(FLIP) < 0.5 else window) / 255


def day41(image: np.ndarray, draw: Callable[[int], float]) -> np.ndarray:
    """Crop, flip, ColorJitter(0.2, 0.2, 0.2, 0.1), RandomRotation(15)."""
    pixels = crop_and_flip(image, draw)
    pixels = np.clip(pixels * (0.8 + 0.4 * draw(BRIGHTNESS)), 0, 1)
    pixels = blend(pixels, grey(pixels).mean(), 0.8 + 0.4 * draw(CONTRAST))
    pixels = blend(pixels, grey(pixels)[..., None], 0.8 + 0.4 * draw(SATURATION))
    pixels = turn_hue(pixels, -0.1 + 0.2 * draw(HUE))
    return rotate(pixels, -15 + 30 * draw(ANGLE))


def grey(pixels: np.ndarray) -> np.ndarray:
    return pixels @ np.array([0.2989, 0.587, 0.114])


def blend(pixels: np.ndarray, other: np.ndarray, share: float) -> np.ndarray:
    return np.clip(share * pixels + (1 - share) * other, 0, 1)


def turn_hue(pixels: np.ndarray, turn: float) -> np.ndarray:
    """RGB -> HSV -> RGB as in the standard library's colorsys."""
    red, green, blue = np.moveaxis(pixels, -1, 0)
    high, low = pixels.max(-1), pixels.min(-1)
    spread = np.where(high > low, high - low, 1.0)
    to_red, to_green, to_blue = (high - red) / spread, (high - green) / spread, (high - blue) / spread
    hue = np.where(high == red, to_blue - to_green, 2 + to_red - to_blue)
    hue = np.where((high != red) & (high != green), 4 + to_green - to_red, hue)
    hue = np.where(high > low, hue / 6 + turn, 0.0) % 1.0
    saturation = np.where(high > 0, (high - low) / np.where(high > 0, high, 1.0), 0.0)
    sector = np.floor(hue * 6).astype(int)
    part = hue * 6 - sector
    p, q, t = high * (1 - saturation), high * (1 - saturation * part), high * (1 - saturation * (1 - part))
    rgb = [(high, t, p), (q, high, p), (p, high, t), (p, q, high), (t, p, high), (high, p, q)]
    return np.select([(sector % 6 == i)[..., None] for i in range(6)], [np.stack(c, -1) for c in rgb])


def rotate(pixels: np.ndarray, degrees: float) -> np.ndarray:
    """Counter-clockwise about the centre, bilinear, black outside."""
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    y, x = np.mgrid[:32, :32] - 15.5
    from_x, from_y = cos * x - sin * y + 15.5, sin * x + cos * y + 15.5
    result = np.zeros_like(pixels)
    for row in (np.floor(from_y).astype(int), np.floor(from_y).astype(int) + 1):
        for column in (np.floor(from_x).astype(int), np.floor(from_x).astype(int) + 1):
            inside = (row >= 0) & (row < 32) & (column >= 0) & (column < 32)
            weight = inside * (1 - abs(from_y - row)) * (1 - abs(from_x - column))
            result += weight[..., None] * pixels[row.clip(0, 31), column.clip(0, 31)]
    return result


# ---- The trainings, as the notes have them


@dataclass(frozen=True)
class Training:
    """What the notes say of one training, and what the recipes chose where they are silent."""

    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer]
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    augment: Callable[[np.ndarray, Callable[[int], float]], np.ndarray] = plain
    batch_size: int = 64
    cosine_epochs: int = 0  # by epoch, down to 0


TRAININGS = {
    "softmax": Training(lambda p: SGD(p, lr=0.01)),
    # Fused as ours: unfused it rounds otherwise, and what differs in the last bit differs by 3e-4 after 14 steps.
    "mlp-final": Training(lambda p: Adam(p, lr=1e-3, weight_decay=1e-4, fused=True)),
    "cnn1": Training(lambda p: Adam(p, lr=1e-3, weight_decay=5e-4, fused=True)),
    "cnn2": Training(lambda p: Adam(p, lr=1e-3, weight_decay=5e-4, fused=True)),
    "cnn3": Training(lambda p: Adam(p, lr=3e-3, weight_decay=1e-4, fused=True)),
    "cnn-day41": Training(
        lambda p: Adam(p, lr=1e-3, fused=True),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),
        augment=day41,
    ),
    "resnet9-aug": Training(
        lambda p: SGD(p, lr=5e-3, momentum=0.9, weight_decay=0.032),
        augment=crop_and_flip,
        cosine_epochs=24,
    ),
}


SEED = 0
Batches = Callable[[np.ndarray, int], torch.Tensor]  # float32 [n, 3, 32, 32] of the samples `ids` in an epoch


def train(
    net: nn.Module, training: Training, batch_of: Batches, labels: np.ndarray, *, steps: int, batch_size: int
) -> list[float]:
    """The loss of each of the first `steps` steps; labels int64 [N]."""
    step, losses = 0, []
    optimizer = training.optimizer(net.parameters())
    base_rate = optimizer.param_groups[0]["lr"]
    net.train()
    epoch = 0
    while True:
        order = np.random.Generator(np.random.Philox(key=np.array([SEED, epoch], np.uint64))).permutation(len(labels))
        if training.cosine_epochs:
            optimizer.param_groups[0]["lr"] = base_rate * (1 + np.cos(np.pi * epoch / training.cosine_epochs)) / 2
        for start in range(0, len(order), batch_size):
            if step == steps:
                return losses
            ids = order[start : start + batch_size]
            batch = batch_of(ids, epoch)
            torch.manual_seed(chain(SEED, step, 0, DROPOUT) & (1 << 63) - 1)  # of rank 0
            loss = F.cross_entropy(net(batch), torch.from_numpy(labels[ids]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            step += 1
        epoch += 1


def own_pixels(training: Training, images: np.ndarray) -> Batches:
    """Augmented and normalised here; images uint8 [N, 32, 32, 3]."""

    def batch_of(ids: np.ndarray, epoch: int) -> torch.Tensor:
        rows = []
        for sample in ids.tolist():
            pixels = training.augment(images[sample], lambda slot, sample=sample: uniform(SEED, epoch, sample, slot))
            rows.append((pixels - np.array(training.mean)) / np.array(training.std))
        return torch.from_numpy(np.stack(rows).transpose(0, 3, 1, 2).astype(np.float32, order="C"))

    return batch_of
