"""The fused CPU kernel gives the bits of the torch operations, which test_augment.py checks pixel by pixel."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distcifar.config import AugmentConfig
from distcifar.data import augment
from distcifar.data.draws import draw_moves
from distcifar.data.kernel import fill_batch


def filled(images, rows, table, moves, side, *, reflect):
    """The kernel's batch, written over garbage."""
    out = np.full((len(rows), *images.shape[1:]), np.nan, dtype=np.float32)
    fill_batch(
        out, images, rows, table, moves.shift_y, moves.shift_x, moves.flip, moves.cut_y, moves.cut_x, side, reflect
    )
    return out


def composed(images, rows, table, moves, side, *, reflect):
    """The same batch by the torch operations that a GPU runs."""
    pixels = augment.move(torch.from_numpy(images), torch.from_numpy(rows), moves, reflect=reflect)
    normal = augment.normalise(pixels, torch.from_numpy(table))
    return (augment.cut_out(normal, moves, side) if side else normal).permute(0, 2, 3, 1).numpy()


@settings(max_examples=150, deadline=None)
@given(
    size=st.integers(2, 9),
    channels=st.sampled_from([1, 3]),
    padding=st.integers(0, 8),
    reflect=st.booleans(),
    flip=st.sampled_from(["none", "random", "alternate"]),
    side=st.integers(0, 20),
    rows=st.lists(st.integers(0, 6), min_size=1, max_size=9),
    epoch=st.integers(0, 50),
)
def test_the_kernel_gives_the_bits_of_the_torch_operations(size, channels, padding, reflect, flip, side, rows, epoch):
    padding = min(padding, size - 1) if reflect else padding
    images = np.random.default_rng(size).integers(0, 256, (7, size, size, channels), dtype=np.uint8)
    table = augment.normalisation_table((0.4, 0.5, 0.6)[:channels], (0.2, 0.25, 0.3)[:channels])
    config = AugmentConfig(crop_padding=padding, flip=flip, cutout=side)
    moves = draw_moves(config, 0, epoch, np.arange(len(rows)), size)
    arguments = images, np.array(rows), table, moves, side
    np.testing.assert_array_equal(filled(*arguments, reflect=reflect), composed(*arguments, reflect=reflect))


@pytest.mark.parametrize("side", [1, 2, 3, 4, 16, 64])
def test_cutout_squares_are_whole_inside_and_cut_at_the_border(side):
    """Counted by hand: the centre's pixel is the side//2-th of the square."""
    size, centres = 16, [(0, 0), (8, 8), (15, 15), (0, 15)]
    moves = draw_moves(AugmentConfig(cutout=side), 0, 0, np.arange(len(centres)), size)
    moves.cut_y[:], moves.cut_x[:] = zip(*centres, strict=True)
    images = np.ones((1, size, size, 1), dtype=np.uint8)
    out = filled(images, np.zeros(4, dtype=np.int64), np.ones((1, 256), np.float32), moves, side, reflect=False)
    for picture, centre in zip(out[..., 0], centres, strict=True):
        covered = [range(max(c - side // 2, 0), min(c - side // 2 + side, size)) for c in centre]
        assert (picture == 0).sum() == len(covered[0]) * len(covered[1])
        assert not picture[np.ix_(*covered)].any()


def test_every_pixel_is_written_when_the_window_lies_outside_the_image():
    moves = draw_moves(AugmentConfig(), 0, 0, np.arange(2), 4)
    moves.shift_y[:] = [4, -9]
    images = np.full((1, 4, 4, 3), 200, dtype=np.uint8)
    table = augment.normalisation_table((0.5,) * 3, (0.5,) * 3)
    out = filled(images, np.zeros(2, dtype=np.int64), table, moves, 0, reflect=False)
    np.testing.assert_array_equal(out, np.full((2, 4, 4, 3), -1.0))  # black, normalised
