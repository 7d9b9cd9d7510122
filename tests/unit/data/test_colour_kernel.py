"""The colour kernel against the torch operations that a GPU runs, which test_augment.py checks one by one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distcifar.config import AugmentConfig
from distcifar.data import pixels
from distcifar.data.pixels import PixelPipeline

FIELDS = ("brightness", "contrast", "saturation", "hue", "rotation")
CPU = torch.device("cpu")


def pipeline(config, *, size, channels, mean=0.0, std=1.0):
    """Without normalisation by default: pixels are in 0..1, the scale of the promised 1e-5."""
    return PixelPipeline(config, 3, size, 1000, (mean,) * channels, (std,) * channels, CPU)


def both_ways(pipe, stored, rows, epoch):
    """The batch by the kernel and by torch's operations."""
    draws = pipe.draw(np.asarray(rows) + 50, epoch)
    places = torch.tensor(rows)
    return pipe.train(stored, places, draws), pipe._train_interpolated(stored, places, draws)


@settings(max_examples=150, deadline=None)
@given(
    size=st.integers(2, 12),
    channels=st.sampled_from([1, 3]),
    strengths=st.tuples(*(st.sampled_from([0.0, 0.3, 1.0]) for _ in range(3)), st.sampled_from([0.0, 0.1, 0.5])),
    rotation=st.sampled_from([0.0, 15.0, 180.0]),
    padding=st.integers(0, 6),
    fill=st.sampled_from(["zeros", "reflect"]),
    cutout=st.sampled_from([0, 3]),
    rows=st.lists(st.integers(0, 6), min_size=1, max_size=6),
    levels=st.sampled_from([2, 3, 256]),
    epoch=st.integers(0, 50),
)
def test_the_kernel_agrees_with_the_torch_operations(
    size, channels, strengths, rotation, padding, fill, cutout, rows, levels, epoch
):
    padding = min(padding, size - 1) if fill == "reflect" else padding
    config = AugmentConfig(
        crop_padding=padding, crop_fill=fill, flip="random", cutout=cutout,
        **dict(zip(FIELDS, (*strengths, rotation), strict=True)),
    )  # fmt: skip
    # few levels: equal channels, greys and blacks, where the hue is undefined and the largest channel is a tie
    places = np.random.default_rng(size).integers(0, levels, (7, size, size, channels))
    stored = torch.from_numpy((places * (255 // (levels - 1))).astype(np.uint8))
    kernel, operations = both_ways(pipeline(config, size=size, channels=channels), stored, rows, epoch)
    torch.testing.assert_close(kernel, operations, rtol=0, atol=1e-5)


@pytest.mark.parametrize("change", [{}, {"random_resized_crop": 6}, {"resize": 10}])
def test_recipes_that_do_not_resize_take_the_kernel(change, monkeypatch):
    """And those that do take the operations: the kernel has none of theirs."""
    operations = []
    monkeypatch.setattr(pixels.augment, "rotate", lambda images, _: operations.append("rotate") or images)
    config = replace(AugmentConfig(rotation=10), **change)
    pipe = pipeline(config, size=8, channels=3)
    stored = torch.zeros(4, 8, 8, 3, dtype=torch.uint8)
    pipe.train(stored, torch.arange(4), pipe.draw(np.arange(4), 0))
    assert bool(operations) == bool(change)


def test_pixels_are_normalised_and_the_black_outside_as_well():
    """A white image turned by an eighth: its corners come from outside. Black is (0 - mean) / std there."""
    pipe = pipeline(AugmentConfig(rotation=180), size=9, channels=3, mean=0.5, std=0.25)
    stored = torch.full((1, 9, 9, 3), 255, dtype=torch.uint8)
    draws = pipe.draw(np.zeros(1, dtype=np.int64), 0)
    assert draws.colours is not None
    draws.colours.angle[:] = 45.0
    (image,) = pipe.train(stored, torch.zeros(1, dtype=torch.int64), draws)
    assert image[:, 4, 4].tolist() == pytest.approx([2.0] * 3)
    assert image[:, 0, 0].tolist() == pytest.approx([-2.0] * 3)


def test_cut_pixels_are_the_channel_mean():
    """A square of 20 pixels covers all 8 wherever its centre is: 0 after the normalisation, not black."""
    pipe = pipeline(AugmentConfig(contrast=0.5, cutout=20), size=8, channels=1, mean=0.3, std=0.2)
    stored = torch.full((1, 8, 8, 1), 200, dtype=torch.uint8)
    assert not pipe.train(stored, torch.zeros(1, dtype=torch.int64), pipe.draw(np.zeros(1, dtype=np.int64), 0)).any()
