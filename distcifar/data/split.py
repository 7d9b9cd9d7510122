"""Who is in which split: stratified by class, seeded, a pure function of the labels."""

import numpy as np
from numpy.typing import NDArray

from distcifar.data.images import ImageSet, LabelledImages
from distcifar.errors import DataError

TEST_SHARE = 0.1  # of a source without test images
_TEST_SEED = 0  # never the user's seed: validation splits may vary, what is tested on stays


def proportional_counts(class_counts: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """How many of `total` samples each class gives: proportional to its count, largest remainders rounded up.

    class_counts: int64 [K], 0 <= total <= their sum. Returns int64 [K] that sums to `total`; equal remainders
    go to the lower class. In whole numbers, so that no rounding of floats decides.
    """
    available = int(class_counts.sum())
    shares = class_counts * total
    counts, remainders = shares // available, shares % available
    missing = total - int(counts.sum())
    counts[np.argsort(-remainders, kind="stable")[:missing]] += 1
    return counts


def stratified_indices(labels: NDArray[np.int64], total: int, seed: int) -> NDArray[np.int64]:
    """`total` indices into `labels` (int64 [N]), drawn proportionally to the classes, ascending: int64 [total]."""
    draws = np.random.Generator(np.random.Philox(key=seed)).random(len(labels))
    counts = proportional_counts(np.bincount(labels), total)
    chosen = []
    for label, count in enumerate(counts):
        members = np.flatnonzero(labels == label)
        chosen.append(members[np.argsort(draws[members], kind="stable")[:count]])
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def with_drawn_test(train: LabelledImages, class_names: tuple[str, ...], why: str) -> ImageSet:
    """The set with a tenth of its images, stratified and always the same ones, as test split."""
    chosen = stratified_indices(train.labels, int(len(train) * TEST_SHARE), _TEST_SEED)
    rest = np.setdiff1d(np.arange(len(train), dtype=np.int64), chosen)
    note = f"{why}: {len(chosen)} of its {len(train)} images ({TEST_SHARE:.0%} of each class) are the test split"
    if not len(chosen):
        raise DataError(
            f"{why}, and {len(train)} images are too few to draw it",
            f"A test split takes {TEST_SHARE:.0%} of the images, and one at least",
            "Add test images",
        )
    return ImageSet(train.take(rest), train.take(chosen), class_names, notes=(note,))


def train_val_indices(
    labels: NDArray[np.int64], validation: int, train_first: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of training and validation, ascending; labels: int64 [N] of all training images.

    With `train_first` the first that many are trained on, and validation comes from the rest; otherwise
    everything that is not validation is trained on. Raises DataError if there are too few images.
    """
    everything = np.arange(len(labels), dtype=np.int64)
    if train_first > len(labels):
        raise DataError(
            f"train_first is {train_first} and there are {len(labels)} training images",
            "The first N images must be there",
            f"Give --train-first {len(labels) // 2} or less",
        )
    pool = everything[train_first:]
    room = len(pool) if train_first else len(pool) - 1
    if validation > room:
        rest = f" of which the first {train_first} are trained on" if train_first else ""
        raise DataError(
            f"validation is {validation} and there are {len(labels)} training images{rest}",
            f"At most {room} can be held out",
            f"Give --validation {min(room, len(labels) // 10)}",
        )
    held_out = pool[stratified_indices(labels[pool], validation, seed)] if validation else everything[:0]
    train = everything[:train_first] if train_first else np.setdiff1d(everything, held_out)
    return train, held_out
