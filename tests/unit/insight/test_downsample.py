"""A long curve with few points looks like the long one; a short one is left as it is."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distcifar.insight.downsample import MOST_POINTS, Downsampler, downsample

VALUES = st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32) | st.integers(0, 3), max_size=300)


@given(VALUES, st.integers(4, 40))
def test_few_points_of_the_curve_in_their_order_with_both_ends_and_both_extremes(ys: list[float], most: int):
    xs, kept = downsample(range(len(ys)), ys, most)
    assert len(xs) == len(kept) <= most
    assert all(a < b for a, b in pairwise(xs))
    assert [ys[int(x)] for x in xs] == kept
    if ys:
        assert (xs[0], xs[-1]) == (0, len(ys) - 1)
        assert (min(kept), max(kept)) == (min(ys), max(ys))


@given(VALUES, st.integers(4, 400))
def test_a_short_curve_is_left_as_it_is(ys: list[float], most: int):
    if len(ys) <= most:
        assert downsample(range(len(ys)), ys, most) == ([*range(len(ys))], ys)


@given(st.integers(2001, 100_000), st.data())
def test_every_spike_of_a_long_curve_stays_where_it_was(length: int, data: st.DataObject):
    """One in each fortieth of the curve, up or down."""
    places = [data.draw(st.integers(i * length // 40, (i + 1) * length // 40 - 1)) for i in range(0, 40, 5)]
    ys = [0.0] * length
    for number, place in enumerate(places):
        ys[place] = (-1.0) ** number * (1 + number)
    xs, kept = downsample(range(length), ys)
    assert {place: ys[place] for place in places}.items() <= dict(zip(xs, kept, strict=True)).items()


@pytest.mark.parametrize("length", [2001, 2500, 4000, 100_001])
def test_a_long_curve_has_points_everywhere(length: int):
    ys = [math.sin(i / 7) for i in range(length)]
    xs, _ = downsample(range(length), ys)
    assert 800 <= len(xs) <= MOST_POINTS
    assert max(b - a for a, b in pairwise(xs)) <= length / 200


def test_the_sample_has_as_many_high_values_as_the_curve_has():
    """Of the lowest and highest points half would be high: one in a hundred values is a spike."""
    curve = Downsampler()
    for i in range(50_000):
        curve.add(i, 100.0 if i % 101 == 0 else i % 7)
    assert len(curve) == 50_000
    sample = sorted(curve.sample())
    assert sample[int(0.98 * (len(sample) - 1))] <= 6
    assert sorted(curve.curve()[1])[int(0.98 * (len(curve.curve()[1]) - 1))] == 100


def test_points_may_come_as_ints_and_from_arrays_of_one_length_only():
    assert downsample([], []) == ([], [])
    with pytest.raises(ValueError, match="shorter"):
        downsample([1.0, 2.0], [1.0])
