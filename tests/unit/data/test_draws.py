"""What the random numbers mean for an image: every draw is in range, uniform, and a function of (seed, epoch, id)."""

import itertools
import math
from dataclasses import astuple, fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import RandomResizedCrop

from distcifar.config import AugmentConfig
from distcifar.data.draws import cutmix_boxes, draw_boxes, draw_colours, draw_mix, draw_moves
from distcifar.data.plan import Slot, uniforms

IDS = np.arange(20_000)
EVERYTHING = AugmentConfig(
    crop_padding=4,
    flip="random",
    cutout=5,
    brightness=0.3,
    contrast=0.4,
    saturation=0.5,
    hue=0.1,
    rotation=15,
    mixup=0.3,
)


def chi_square(values, kinds):
    """Pearson's statistic of integer `values` against `kinds` equally likely ones, in standard deviations."""
    counts = np.bincount(values, minlength=kinds)
    assert len(counts) == kinds
    expected = len(values) / kinds
    return (((counts - expected) ** 2 / expected).sum() - (kinds - 1)) / np.sqrt(2 * (kinds - 1))


def all_draws(config, seed, epoch, ids):
    """Every draw of `config`, each an array with a row per sample."""
    return [
        *astuple(draw_moves(config, seed, epoch, ids, 32)),
        *astuple(draw_colours(config, seed, epoch, ids)),
        draw_boxes(seed, epoch, ids, 32),
        *draw_mix(config, seed, epoch, ids, 50_000),
    ]


# ---- what all draws promise


@given(
    st.integers(0, 2**63 - 1),
    st.integers(0, 1000),
    st.lists(st.integers(0, 60_000), min_size=2, max_size=4).map(np.array),
)
@settings(max_examples=25, deadline=None)
def test_what_happens_to_a_sample_does_not_depend_on_its_batch(seed, epoch, ids):
    together = all_draws(EVERYTHING, seed, epoch, ids)
    turned = all_draws(EVERYTHING, seed, epoch, ids[::-1].copy())
    alone = [all_draws(EVERYTHING, seed, epoch, ids[i : i + 1]) for i in range(len(ids))]
    for index, draw in enumerate(together):
        np.testing.assert_array_equal(turned[index][::-1], draw)
        np.testing.assert_array_equal(np.concatenate([single[index] for single in alone]), draw)


def test_epochs_and_seeds_change_every_draw():
    ids = IDS[:200]
    for seed, epoch in ((0, 1), (1, 0)):
        for ours, other in zip(all_draws(EVERYTHING, 0, 0, ids), all_draws(EVERYTHING, seed, epoch, ids), strict=True):
            assert not np.array_equal(ours, other)


def test_one_augmentation_does_not_disturb_the_draws_of_another():
    """Cutout can be tried on top of a run's crops without changing the crops."""
    bare = draw_moves(AugmentConfig(crop_padding=4), 0, 0, IDS, 32)
    full = draw_moves(EVERYTHING, 0, 0, IDS, 32)
    np.testing.assert_array_equal(bare.shift_y, full.shift_y)
    np.testing.assert_array_equal(bare.shift_x, full.shift_x)


def test_nothing_happens_by_default():
    moves = draw_moves(AugmentConfig(), 0, 0, IDS[:100], 32)
    assert not moves.shift_y.any()
    assert not moves.shift_x.any()
    assert not moves.flip.any()
    assert (moves.cut_y == -1).all()
    assert (moves.cut_x == -1).all()
    colours = draw_colours(AugmentConfig(), 0, 0, IDS[:100])
    for name, nothing in (("brightness", 1), ("contrast", 1), ("saturation", 1), ("hue", 0), ("angle", 0)):
        assert (getattr(colours, name) == nothing).all()


# ---- moves


@pytest.mark.parametrize("padding", [1, 2, 4])
def test_every_window_of_the_padded_image_is_cropped_equally_often(padding):
    moves = draw_moves(AugmentConfig(crop_padding=padding), 0, 0, IDS, 32)
    places = 2 * padding + 1
    for shift in (moves.shift_y, moves.shift_x):
        assert shift.min() == -padding
        assert shift.max() == padding
    windows = places * (moves.shift_y + padding) + moves.shift_x + padding
    assert abs(chi_square(windows, places**2)) < 5


def test_a_random_flip_is_a_fair_coin_in_every_epoch():
    epochs = [draw_moves(AugmentConfig(flip="random"), 0, epoch, IDS, 32).flip for epoch in range(8)]
    for flips in epochs:
        assert abs(flips.mean() - 0.5) < 5 * 0.5 / np.sqrt(len(IDS))
    for before, after in itertools.pairwise(epochs):
        assert abs((before == after).mean() - 0.5) < 5 * 0.5 / np.sqrt(len(IDS))


def test_alternate_flips_begin_with_a_fair_coin_and_then_turn_every_epoch():
    epochs = [draw_moves(AugmentConfig(flip="alternate"), 3, epoch, IDS, 32).flip for epoch in range(5)]
    assert abs(epochs[0].mean() - 0.5) < 5 * 0.5 / np.sqrt(len(IDS))
    for before, after in itertools.pairwise(epochs):
        np.testing.assert_array_equal(after, ~before)
    other_seed = draw_moves(AugmentConfig(flip="alternate"), 4, 0, IDS, 32).flip
    assert abs((other_seed == epochs[0]).mean() - 0.5) < 5 * 0.5 / np.sqrt(len(IDS))


@pytest.mark.parametrize("size", [8, 9])
def test_cutout_is_centred_on_every_pixel_equally_often(size):
    moves = draw_moves(AugmentConfig(cutout=3), 0, 0, IDS, size)
    assert abs(chi_square(size * moves.cut_y + moves.cut_x, size**2)) < 5


# ---- colours


@pytest.mark.parametrize(
    ("name", "drawn", "centre", "width"),
    [
        ("brightness", "brightness", 1, 0.4),
        ("contrast", "contrast", 1, 1.0),
        ("saturation", "saturation", 1, 0.2),
        ("hue", "hue", 0, 0.5),
        ("rotation", "angle", 0, 15.0),
    ],
)
def test_colour_factors_fill_their_range_and_leave_the_others_alone(name, drawn, centre, width):
    colours = draw_colours(AugmentConfig(**{name: width}), 0, 0, IDS)
    values = (getattr(colours, drawn) - centre) / width
    assert -1 <= values.min() < -0.999
    assert 0.999 < values.max() <= 1
    assert abs(chi_square(np.clip((values + 1) * 10, 0, 19).astype(int), 20)) < 5
    others = {field.name for field in fields(colours)} - {drawn}
    assert all(np.ptp(getattr(colours, other)) == 0 for other in others)


# ---- boxes


@pytest.mark.parametrize("size", [1, 2, 8, 28, 32, 224])
def test_boxes_are_whole_pixels_inside_the_image(size):
    boxes = draw_boxes(0, 0, IDS[:5000], size)
    np.testing.assert_array_equal(boxes, np.rint(boxes))
    top, left, height, width = boxes.T
    assert np.all((top >= 0) & (left >= 0) & (height >= 1) & (width >= 1))
    assert np.all((top + height <= size) & (left + width <= size))


def test_boxes_keep_area_and_aspect_within_their_ranges():
    size = 224
    _, _, height, width = draw_boxes(0, 0, IDS, size).T
    rounding = (height + 0.5) * (width + 0.5) - height * width
    assert np.all(height * width + rounding >= 0.08 * size**2)
    assert np.all((width - 0.5) / (height + 0.5) <= 4 / 3)
    assert np.all((width + 0.5) / (height - 0.5) >= 3 / 4)
    assert np.min(height * width) < 0.09 * size**2
    assert np.max(height * width) > 0.98 * size**2
    assert np.log(width / height).mean() == pytest.approx(0, abs=0.01)  # as often wide as high


def test_boxes_lie_anywhere_they_fit():
    size = 16
    top, left, height, width = draw_boxes(0, 0, IDS, size).T
    assert set(top[height == 8]) == set(left[width == 8]) == set(range(9))
    loose = (height < size) & (width < size)
    down, right = (top / np.maximum(size - height, 1))[loose], (left / np.maximum(size - width, 1))[loose]
    assert down.mean() == pytest.approx(0.5, abs=0.02)
    assert right.mean() == pytest.approx(0.5, abs=0.02)
    assert abs(np.corrcoef(down, right)[0, 1]) < 5 / np.sqrt(loose.sum())


def test_boxes_are_distributed_as_torchvisions():
    image = torch.empty(1, 64, 64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = np.array([RandomResizedCrop.get_params(image, [0.08, 1], [3 / 4, 4 / 3]) for _ in range(6000)])
    ours = draw_boxes(0, 0, IDS, 64)
    for column in range(4):
        spread = theirs[:, column].std()
        assert ours[:, column].mean() == pytest.approx(theirs[:, column].mean(), abs=5 * spread / np.sqrt(6000))
        assert ours[:, column].std() == pytest.approx(spread, rel=0.05)
    area = [boxes[:, 2] * boxes[:, 3] for boxes in (ours, theirs)]
    np.testing.assert_allclose(*[np.quantile(a, [0.1, 0.5, 0.9]) for a in area], rtol=0.06)


# ---- partners


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_partners_are_any_sample_and_shares_are_beta(name):
    partners, own_share = draw_mix(AugmentConfig(**{name: 0.4}), 0, 0, IDS, 50)
    assert partners.dtype == np.int64
    assert abs(chi_square(partners, 50)) < 5
    assert own_share.var() == pytest.approx(1 / (4 * 1.8), rel=0.03)
    assert abs(np.corrcoef(partners, own_share)[0, 1]) < 5 / np.sqrt(len(IDS))


@pytest.mark.parametrize("size", [1, 5, 32])
def test_a_cutmix_box_lies_around_its_centre_and_its_share_is_counted(size):
    ids = IDS[:2000]
    own_share = uniforms(7, 0, ids, 0)
    boxes, left_over = cutmix_boxes(3, 2, ids, own_share, size)
    centres = [uniforms(3, 2, ids, slot) for slot in (Slot.CUTMIX_Y, Slot.CUTMIX_X)]
    for i, (top, bottom, left, right) in enumerate(boxes.tolist()):
        half = math.sqrt(1 - own_share[i]) / 2
        for (first, last), centre in (((top, bottom), centres[0][i]), ((left, right), centres[1][i])):
            assert first == round(max(centre - half, 0) * size)
            assert last == round(min(centre + half, 1) * size)
        assert left_over[i] == pytest.approx(1 - (bottom - top) * (right - left) / size**2, abs=1e-12)
    whole, share = cutmix_boxes(3, 2, ids, np.ones(len(ids)), size)
    assert (share == 1).all()
    assert (whole[:, 0] == whole[:, 1]).all()
