"""The plan: orders, shares and random numbers are pure functions, and good ones (contracts 1 and 2)."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distcifar.data.plan import (
    Slot,
    betas,
    epoch_order,
    global_batch,
    hash64,
    integers,
    mix64,
    share,
    step_seed,
    steps_per_epoch,
    uniforms,
)

IDS = np.arange(20_000)
SINGLE_SLOTS = [slot for slot in Slot if slot < Slot.RESIZED_CROP]
ALL_SLOTS = [*SINGLE_SLOTS, *range(Slot.RESIZED_CROP, Slot.RESIZED_CROP + 40), *range(Slot.MIX, Slot.MIX + 128)]

seeds = st.integers(0, 2**63 - 1)
epochs = st.integers(0, 100_000)
ids_lists = st.lists(st.integers(0, 2**40), min_size=1, max_size=20).map(np.array)


def ks_distance(values, quantile):
    """Kolmogorov's distance of `values` from the distribution whose distribution function is `quantile`."""
    steps = quantile(np.sort(values))
    n = len(values)
    return max(np.abs(steps - np.arange(n) / n).max(), np.abs(steps - np.arange(1, n + 1) / n).max())


def largest_correlation(columns):
    """The largest absolute correlation between two of `columns`."""
    matrix = np.corrcoef(np.stack(columns))
    return np.abs(matrix - np.eye(len(matrix))).max()


# ---- order


@settings(deadline=None)
@given(seeds, epochs, st.integers(1, 300))
def test_an_epoch_visits_every_sample_once(seed, epoch, num_samples):
    order = epoch_order(seed, epoch, num_samples)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(num_samples))


def test_the_order_is_a_function_of_seed_and_epoch_alone():
    first = epoch_order(7, 3, 100)
    np.random.seed(1)  # neither global generator may matter
    torch.manual_seed(1)
    epoch_order(8, 3, 50)
    np.testing.assert_array_equal(epoch_order(7, 3, 100), first)


def test_seeds_and_epochs_all_have_their_own_order():
    orders = {tuple(epoch_order(seed, epoch, 50)) for seed, epoch in itertools.product(range(20), range(20))}
    assert len(orders) == 400


def test_the_order_is_pinned_so_that_old_runs_can_be_repeated():
    """NumPy may change Generator.permutation between versions: then this says so before a resumed run does."""
    assert epoch_order(0, 0, 12).tolist() == [0, 7, 6, 1, 9, 3, 8, 10, 5, 2, 4, 11]
    assert epoch_order(2**63 - 1, 5, 12).tolist() == [10, 6, 9, 1, 5, 8, 3, 7, 0, 2, 11, 4]


def test_a_sample_is_as_likely_at_one_place_of_the_epoch_as_at_another():
    places = [int(np.flatnonzero(epoch_order(0, epoch, 10) == 3)[0]) for epoch in range(5000)]
    counts = np.bincount(places, minlength=10)
    assert ((counts - 500) ** 2 / 500).sum() < 9 + 5 * np.sqrt(2 * 9)


# ---- shares


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 50), st.integers(1, 9), st.booleans())
def test_the_ranks_shares_put_together_are_the_epoch_at_any_world_size(num_samples, batch_size, size, drop_last):
    order = epoch_order(0, 0, num_samples)
    seen = []
    for step in range(steps_per_epoch(num_samples, batch_size, drop_last=drop_last)):
        batch = global_batch(order, step, batch_size)
        parts = [batch[share(len(batch), rank, size)] for rank in range(size)]
        np.testing.assert_array_equal(np.concatenate(parts), batch)
        seen.extend(batch)
    whole = num_samples // batch_size * batch_size if drop_last else num_samples
    np.testing.assert_array_equal(seen, order[:whole])


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(1, 40))
def test_shares_differ_by_at_most_one_sample(count, size):
    lengths = [len(range(count)[share(count, rank, size)]) for rank in range(size)]
    assert sum(lengths) == count
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8, 16])
def test_a_smaller_batch_gives_no_rank_a_larger_share(size):
    """FFCV cuts an epoch into equal chunks of which only the last may be smaller, on every rank."""
    lengths = [[len(range(count)[share(count, rank, size)]) for rank in range(size)] for count in range(1, 100)]
    for smaller, larger in itertools.pairwise(lengths):
        assert all(few <= many for few, many in zip(smaller, larger, strict=True)), (smaller, larger)


some_weights = st.lists(st.integers(1, 60), min_size=1, max_size=7).map(tuple)


def parts(count: int, weights: tuple[int, ...]) -> list[int]:
    return [len(range(count)[share(count, rank, len(weights), weights)]) for rank in range(len(weights))]


@settings(deadline=None)
@given(st.integers(0, 500), some_weights)
def test_weighted_shares_follow_one_another_and_are_all_of_it(count, weights):
    shares = [range(count)[share(count, rank, len(weights), weights)] for rank in range(len(weights))]
    assert [item for part in shares for item in part] == list(range(count))


@settings(deadline=None)
@given(st.integers(0, 200), st.integers(1, 20), st.integers(1, 9))
def test_equal_weights_give_the_shares_of_none(count, weight, size):
    for rank in range(size):
        assert share(count, rank, size, (weight,) * size) == share(count, rank, size)


@settings(deadline=None)
@given(st.integers(0, 500), some_weights)
def test_weighted_shares_are_less_than_an_item_off_their_ideal_but_for_two_items_that_each_is_given_first(
    count, weights
):
    ideals = [Fraction(count * weight, sum(weights)) for weight in weights]
    least = [min(2, weight) for weight in weights]
    given_away = sum(max(0, few - ideal) for few, ideal in zip(least, ideals, strict=True))
    for part, ideal, few in zip(parts(count, weights), ideals, least, strict=True):
        assert ideal - 1 - given_away < part < max(few + 1, ideal + 1)
    assert parts(sum(weights), weights) == list(weights)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=5).map(tuple))
def test_a_smaller_batch_gives_no_rank_a_larger_weighted_share(weights):
    """Rounding of cumulated weights would not do: of weights 5, 2, 3 it gives the second rank 1 of 3 and 0 of 4."""
    for smaller, larger in itertools.pairwise(parts(count, weights) for count in range(2 * sum(weights) + 2)):
        assert all(few <= many for few, many in zip(smaller, larger, strict=True)), (smaller, larger)


@settings(deadline=None)
@given(st.integers(1, 200), st.lists(st.integers(2, 60), min_size=1, max_size=7).map(tuple))
def test_no_rank_starves_where_there_is_an_image_for_each(count, weights):
    assert min(parts(count, weights)) >= min(2, count // len(weights))


def test_a_rank_without_weight_gets_nothing():
    assert parts(10, (3, 0, 2)) == [6, 0, 4]


@pytest.mark.parametrize(("num_samples", "steps", "kept"), [(100, 4, 3), (96, 3, 3), (31, 1, 0), (32, 1, 1)])
def test_the_incomplete_last_batch_is_a_step_unless_it_is_dropped(num_samples, steps, kept):
    assert steps_per_epoch(num_samples, 32, drop_last=False) == steps
    assert steps_per_epoch(num_samples, 32, drop_last=True) == kept


# ---- random numbers: what they are


def test_mix64_is_splitmix64():
    """The published outputs of SplitMix64 for seed 1234567."""
    states = 1234567 + np.arange(1, 6, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert mix64(states).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def uniform_by_hand(seed, epoch, sample, slot):
    """`uniforms` for one sample in Python's unbounded integers."""

    def mix(z):
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    key = 0
    for word in (seed, epoch, slot):
        key = mix((key + 0x9E3779B97F4A7C15 + word) % 2**64)
    return (mix(mix((sample * 0x9E3779B97F4A7C15 + key) % 2**64)) >> 11) / 2**53


@settings(deadline=None)
@given(seeds, epochs, ids_lists, st.sampled_from(ALL_SLOTS))
def test_uniforms_are_the_documented_hash(seed, epoch, ids, slot):
    expected = [uniform_by_hand(seed, epoch, int(sample), int(slot)) for sample in ids]
    assert uniforms(seed, epoch, ids, slot).tolist() == expected


def test_slot_numbers_are_pinned_and_do_not_overlap():
    """Renumbering would change every run that was ever made."""
    assert {slot.name: int(slot) for slot in Slot} == {
        "CROP_Y": 0,
        "CROP_X": 1,
        "FLIP": 2,
        "CUTOUT_Y": 3,
        "CUTOUT_X": 4,
        "BRIGHTNESS": 5,
        "CONTRAST": 6,
        "SATURATION": 7,
        "HUE": 8,
        "ANGLE": 9,
        "PARTNER": 10,
        "CUTMIX_Y": 11,
        "CUTMIX_X": 12,
        "RESIZED_CROP": 100,
        "MIX": 200,
    }
    assert len(set(ALL_SLOTS)) == len(ALL_SLOTS)


@settings(deadline=None)
@given(seeds, epochs, ids_lists, st.randoms(use_true_random=False))
def test_a_sample_draws_the_same_numbers_in_any_company(seed, epoch, ids, random):
    chosen = [random.randrange(len(ids)) for _ in range(5)]
    for draw in (
        lambda of: uniforms(seed, epoch, of, Slot.FLIP),
        lambda of: integers(seed, epoch, of, Slot.CROP_Y, 9),
        lambda of: betas(seed, epoch, of, Slot.MIX, 0.3),
    ):
        np.testing.assert_array_equal(draw(ids[chosen]), draw(ids)[chosen])
        np.testing.assert_array_equal(draw(ids[:1]), draw(ids)[:1])


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=4, unique=True))
def test_hash64_tells_the_order_and_the_number_of_its_words(words):
    hashes = [hash64(*permuted) for permuted in itertools.permutations(words)]
    assert len(set(hashes)) == len(hashes)
    assert hash64(*words) != hash64(*words, 0) != hash64(0, *words)


def test_dropout_seeds_differ_between_steps_ranks_and_seeds_and_suit_torch():
    found = {step_seed(*key) for key in itertools.product(range(10), range(100), range(8))}
    assert len(found) == 8000
    for seed in (step_seed(2**63 - 1, 10**9, 7), max(found), min(found)):
        assert torch.Generator().manual_seed(seed).initial_seed() == seed


# ---- random numbers: how good they are


@pytest.mark.parametrize("slot", SINGLE_SLOTS)
def test_uniforms_are_uniform_over_samples_and_over_epochs(slot):
    over_samples = uniforms(0, 0, IDS, slot)
    over_epochs = np.array([uniforms(0, epoch, IDS[:1], slot)[0] for epoch in range(2000)])
    for values in (over_samples, over_epochs):
        assert values.min() >= 0
        assert values.max() < 1
        assert ks_distance(values, lambda x: x) < 1.95 / np.sqrt(len(values))  # 0.1 % of good ones fail


def test_slots_are_independent_of_one_another():
    """CROP_Y and CROP_X above all: were they one number, crops would move along the diagonal."""
    columns = [uniforms(0, 0, IDS, slot) for slot in (*SINGLE_SLOTS, 100, 101, 102, 103, 104, 200, 201, 202)]
    assert largest_correlation(columns) < 5 / np.sqrt(len(IDS))


def test_epochs_are_independent_of_one_another():
    columns = [uniforms(0, epoch, IDS, Slot.FLIP) for epoch in range(20)]
    assert largest_correlation(columns) < 5 / np.sqrt(len(IDS))


def test_seeds_are_independent_of_one_another():
    columns = [uniforms(seed, 0, IDS, Slot.FLIP) for seed in (*range(20), 2**63 - 1)]
    assert largest_correlation(columns) < 5 / np.sqrt(len(IDS))


def test_neighbouring_samples_are_independent():
    values = uniforms(0, 0, IDS, Slot.CROP_Y)
    columns = [np.roll(values, lag) for lag in (0, 1, 2, 3, 10, 32, 1000)]
    assert largest_correlation(columns) < 5 / np.sqrt(len(IDS))


def test_seed_epoch_and_slot_are_not_interchangeable():
    keys = itertools.product(range(5), range(5), range(5))
    draws = {tuple(uniforms(seed, epoch, IDS[:3], slot)) for seed, epoch, slot in keys}
    assert len(draws) == 125


def test_all_pairs_of_integers_occur_equally_often():
    """9 x 9 windows of a crop with 4 pixels of padding."""
    y, x = (integers(0, 0, IDS, slot, 9) for slot in (Slot.CROP_Y, Slot.CROP_X))
    counts = np.bincount(9 * y + x, minlength=81)
    expected = len(IDS) / 81
    assert ((counts - expected) ** 2 / expected).sum() < 80 + 5 * np.sqrt(2 * 80)


@settings(deadline=None)
@given(seeds, st.one_of(st.integers(1, 100), st.integers(1, 2**53)))
def test_integers_stay_below_their_count(seed, count):
    values = integers(seed, 0, IDS[:200], Slot.PARTNER, count)
    assert values.min() >= 0
    assert values.max() < count


# ---- Beta draws


@pytest.mark.parametrize("alpha", [1.0, 0.8, 0.4, 0.2, 0.05])
def test_betas_have_the_distribution_of_numpys(alpha):
    ours = betas(0, 0, IDS, Slot.MIX, alpha)
    theirs = np.random.default_rng(0).beta(alpha, alpha, size=100_000)
    at = np.quantile(theirs, np.linspace(0, 1, 101))
    below = [np.searchsorted(np.sort(values), at, side="right") / len(values) for values in (ours, theirs)]
    np.testing.assert_allclose(*below, atol=0.015)
    assert abs(ours.mean() - 0.5) < 5 * ours.std() / np.sqrt(len(ours))
    assert ours.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)


@pytest.mark.parametrize("alpha", [1e-2, 1e-4, 1e-6, 1e-9])
def test_betas_of_a_tiny_alpha_are_nearly_all_0_or_1(alpha):
    """A recipe may ask for any alpha above 0; half and half is what such an alpha means least."""
    values = betas(0, 0, IDS[:5000], Slot.MIX, alpha)
    assert values.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)
    assert values.mean() == pytest.approx(0.5, abs=0.04)


@settings(deadline=None)
@given(seeds, st.floats(0, 1, exclude_min=True))
def test_betas_are_shares(seed, alpha):
    values = betas(seed, 0, IDS[:50], Slot.MIX, alpha)
    assert np.all((values >= 0) & (values <= 1))
