"""Which sample at which step on which rank, with which random numbers: pure functions (contracts 1 and 2).

The order of an epoch is a permutation drawn from (seed, epoch); step s takes the next global batch of it, and
rank r of W that batch's r-th contiguous share, all of a size or by weights. Random numbers are hashes of (seed, epoch,
sample, slot), so they do not depend on who computes them, in which order, or together with which other samples.
"""

from enum import IntEnum
from functools import cache

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: the increment of SplitMix64


class Slot(IntEnum):
    """What a random number is for. The values are part of the contract: renumbering changes every run."""

    CROP_Y = 0
    CROP_X = 1
    FLIP = 2
    CUTOUT_Y = 3
    CUTOUT_X = 4
    BRIGHTNESS = 5
    CONTRAST = 6
    SATURATION = 7
    HUE = 8
    ANGLE = 9
    PARTNER = 10
    CUTMIX_Y = 11
    CUTMIX_X = 12
    RESIZED_CROP = 100  # four numbers for each of ten attempts follow
    MIX = 200  # two numbers for each attempt follow


def epoch_order(seed: int, epoch: int, num_samples: int) -> Ids:
    """The order in which epoch `epoch` visits the samples: int64 [num_samples], each id once."""
    key = np.array([seed & _MASK, epoch], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).permutation(num_samples)


def hardest(order: Ids, losses: NDArray[np.float32], count: int) -> Ids:
    """The `count` samples of `order` with the highest of `losses` (one per sample id), in their order.

    Of equal losses the earlier in `order` goes first, so those that were never seen (inf) are chosen at random.
    """
    chosen = np.argsort(-losses[order], kind="stable")[:count]
    return order[np.sort(chosen)]


def steps_per_epoch(num_samples: int, batch_size: int, *, drop_last: bool) -> int:
    """Number of global batches in an epoch; the last may be smaller unless `drop_last`."""
    return num_samples // batch_size if drop_last else -(-num_samples // batch_size)


def global_batch(order: Ids, step: int, batch_size: int) -> Ids:
    """The ids of step `step` (within the epoch) over all ranks."""
    return order[step * batch_size : (step + 1) * batch_size]


def share(count: int, rank: int, size: int, weights: tuple[int, ...] = ()) -> slice:
    """Rank `rank`'s contiguous part of `count` items over `size` ranks.

    Parts differ by at most one item, or are in proportion to `weights`: the parts of sum(weights) items. Equal weights
    give the same parts as none. A smaller count enlarges no part.
    """
    if weights:
        parts = _parts(count, weights)
        start = sum(parts[:rank])
        return slice(start, start + parts[rank])
    each, over = divmod(count, size)  # the first `over` ranks take one more, so a smaller count enlarges no part
    return slice(rank * each + min(rank, over), (rank + 1) * each + min(rank + 1, over))


@cache
def _parts(count: int, weights: tuple[int, ...]) -> tuple[int, ...]:
    """How many of `count` items each rank takes.

    Item by item, as seats of a parliament: the next goes to the highest weight / (part + 1) among the ranks whose part
    is still below its ideal (the quota method: Balinski, Young 1975). It is the only simple one in which no part is an
    item or more off its ideal and none shrinks as `count` grows. The first two items go to each rank in turn: BatchNorm
    needs two, so that a rank with fewer computes as long.
    """
    whole, rest = divmod(count, sum(weights))
    weight = np.array(weights)
    part = np.zeros_like(weight)
    for given in range(1, rest + 1):
        claims = np.where(part * weight.sum() < weight * given, weight / (part + 1), -1.0)
        in_need = whole * weight + part < np.minimum(weight, 2)
        part[np.argmax(np.where(in_need, weight.sum() * (3 - part), claims))] += 1  # the first of equal claims
    return tuple((whole * weight + part).tolist())


def mix64(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finalizer (Steele, Lea, Flood 2014, variant 13): a bijection of 64-bit integers."""
    z = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def hash64(*words: int) -> int:
    """A 64-bit hash of a tuple of integers, order-sensitive."""
    state = np.zeros(1, dtype=np.uint64)
    for word in words:
        state = mix64(state + np.uint64(_GAMMA) + np.array([word & _MASK], dtype=np.uint64))
    return int(state[0])


def uniforms(seed: int, epoch: int, ids: Ids, slot: int) -> NDArray[np.float64]:
    """One number in [0, 1) for each id: float64 [n], a pure function of (seed, epoch, id, slot)."""
    key = np.uint64(hash64(seed, epoch, slot))
    hashed = mix64(mix64(ids.astype(np.uint64) * np.uint64(_GAMMA) + key))
    return (hashed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def integers(seed: int, epoch: int, ids: Ids, slot: int, count: int) -> NDArray[np.int64]:
    """One integer in [0, count) for each id: int64 [n]."""
    return (uniforms(seed, epoch, ids, slot) * count).astype(np.int64)


def betas(seed: int, epoch: int, ids: Ids, slot: int, alpha: float) -> NDArray[np.float64]:
    """One draw of Beta(alpha, alpha), 0 < alpha <= 1, for each id: float64 [n].

    Johnk's rejection method (Metrika 8, 1964): u^(1/a) / (u^(1/a) + v^(1/a)) where that sum is at most 1.
    At least half of the draws are taken in each round, and a sample's result depends on no other sample.
    """
    alpha = max(alpha, 1e-300)
    result = np.full(len(ids), 0.5)
    open_ = np.arange(len(ids))
    for attempt in range(64):  # 2^-32 of the draws, at most, are left with 0.5
        # 1 - u lies in (0, 1]; powers would underflow for a small alpha, their logarithms do not
        x = np.log(1 - uniforms(seed, epoch, ids[open_], slot + 2 * attempt)) / alpha
        y = np.log(1 - uniforms(seed, epoch, ids[open_], slot + 2 * attempt + 1)) / alpha
        total = np.logaddexp(x, y)
        taken = total <= 0
        result[open_[taken]] = np.exp((x - total)[taken])
        open_ = open_[~taken]
        if not len(open_):
            break
    return result


def step_seed(seed: int, step: int, rank: int) -> int:
    """The seed of torch's generator (dropout) for one global step on one rank: no state to save."""
    return hash64(seed, step, rank, 0xD0) & ((1 << 63) - 1)
