"""Batches: the same epoch for every world size, store and thread count; each evaluated sample once; exact resume."""

import itertools
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distcifar.config import AugmentConfig
from distcifar.data import pixels
from distcifar.data.augment import resize
from distcifar.data.draws import draw_mix
from distcifar.data.loader import EvalLoader, TrainLoader
from distcifar.data.pixels import PixelPipeline
from distcifar.data.plan import epoch_order
from distcifar.data.stores import ResidentStore
from distcifar.world import World
from tests.unit.data.conftest import CPU, IMAGES, KINDS, LABELS, SIZE, N

SEED = 5
MOVES = AugmentConfig(crop_padding=2, crop_fill="reflect", flip="random", cutout=3)
MIXUP = replace(MOVES, crop_fill="zeros", flip="alternate", mixup=0.4)
CUTMIX = replace(MOVES, cutmix=1.0)
COMPUTED = AugmentConfig(flip="random", brightness=0.3, hue=0.1, rotation=10, random_resized_crop=6)


def pipeline(config, num_samples=N, *, device=CPU, size=SIZE):
    return PixelPipeline(config, SEED, size, num_samples, (0.5, 0.4, 0.3), (0.25, 0.2, 0.1), device)


def unchanged(num_samples=N):
    """Pixels as p/255: `shown_ids` can read the ids in them."""
    return PixelPipeline(AugmentConfig(), SEED, SIZE, num_samples, (0.0,) * 3, (1.0,) * 3, CPU)


def shown_ids(batch):
    return (batch.images[:, 0, 0, 0] * 255).round().int().tolist()


def ranks(store, config, batch_size, size, **options):
    """The training loaders of a world of `size` ranks, which share this process and the store."""
    worlds = [World(rank, size, CPU) for rank in range(size)]
    return [TrainLoader(store, pipeline(config), batch_size, SEED, world, **options) for world in worlds]


def global_batches(loaders, epoch, first_step=0):
    """Each step's ids, images, labels, partners' labels and own shares over all ranks, as one global batch."""
    steps = zip(*[loader.batches(epoch, first_step) for loader in loaders], strict=True)
    return [[joined(batches, name) for name in FIELDS] for batches in steps]


FIELDS = ("ids", "images", "labels", "partner_labels", "own_share")


def joined(batches, name):
    """What counts of the ranks' shares, one after the other."""
    parts = [getattr(batch, name) for batch in batches]
    if parts[0] is None:
        return None
    return torch.cat([torch.as_tensor(part)[: batch.counted] for part, batch in zip(parts, batches, strict=True)])


def assert_same(ours, theirs, tolerance=0.0):
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        for a, b in zip(mine, other, strict=True):
            if a is None:
                assert b is None
            else:
                torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


# ---- contract 1 and 2: the same epochs at every size


@pytest.mark.parametrize(("config", "batch_size"), [(MOVES, 8), (MIXUP, 4)], ids=["moves", "mixup"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 2, 4])
def test_order_and_pixels_are_the_same_for_any_ranks_store_and_threads(
    stores, resident, config, batch_size, kind, size
):
    reference = ranks(resident, config, batch_size, 1)
    for epoch in (0, 3):
        expected = global_batches(reference, epoch)
        assert_same(global_batches(ranks(stores[kind], config, batch_size, size), epoch), expected)
        order = torch.cat([batch[0] for batch in expected])
        np.testing.assert_array_equal(order, epoch_order(SEED, epoch, N))


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([MOVES, MIXUP, CUTMIX]), st.integers(5, 40), st.integers(1, 7), st.integers(0, 50))
def test_any_number_of_ranks_sees_the_same_bits(config, batch_size, size, epoch):
    store = ResidentStore(IMAGES, LABELS, CPU)
    together = global_batches(ranks(store, config, batch_size, size), epoch)
    assert_same(together, global_batches(ranks(store, config, batch_size, 1), epoch))


@pytest.mark.parametrize("weights", [(3, 9), (2, 7, 3)])
@pytest.mark.parametrize("kind", KINDS)
def test_parts_by_weight_are_of_the_same_global_batches(stores, resident, kind, weights):
    """Batches of 12 and a last one of 9."""
    loaders = ranks(stores[kind], MOVES, 12, len(weights), weights=weights)
    assert tuple(loader.images for loader in loaders) == weights
    assert_same(global_batches(loaders, 0), global_batches(ranks(resident, MOVES, 12, 1), 0))
    firsts = [next(loader.batches(0)) for loader in loaders]
    assert [batch.start for batch in firsts] == [0, *itertools.accumulate(weights)][:-1]


@pytest.mark.parametrize("size", [2, 3])
def test_computed_pixels_agree_within_1e_5_for_any_ranks(resident, size):
    alone = global_batches(ranks(resident, COMPUTED, 8, 1), 3)
    assert_same(global_batches(ranks(resident, COMPUTED, 8, size), 3), alone, tolerance=1e-5)


def test_seven_ranks_can_stream_a_last_batch_that_splits_otherwise(streamed, resident):
    """Batches of 12 and a last one of 9 samples: no rank may be given more of the 9 than of a 12."""
    together = global_batches(ranks(streamed, MOVES, 12, 7), 0)
    assert_same(together, global_batches(ranks(resident, MOVES, 12, 1), 0))


# ---- what a batch is


@pytest.mark.parametrize("kind", KINDS)
def test_images_and_labels_belong_to_the_ids(stores, kind):
    loader = TrainLoader(stores[kind], unchanged(), 8, SEED, World())
    seen = []
    for batch in loader.batches(0):
        assert shown_ids(batch) == batch.ids.tolist()
        assert batch.labels.tolist() == LABELS[batch.ids].tolist()
        seen.extend(batch.ids)
    assert sorted(seen) == list(range(N))


@pytest.mark.parametrize("config", [MIXUP, CUTMIX], ids=["mixup", "cutmix"])
def test_mixed_images_are_made_of_the_two_whose_labels_are_given(resident, config):
    """The partner as it would look in this epoch itself."""
    bare = replace(config, mixup=0.0, cutmix=0.0)
    looks = {}
    for batch in ranks(resident, bare, 1, 1)[0].batches(2):
        looks[int(batch.ids[0])] = batch.images[0]
    for batch in ranks(resident, config, 8, 1)[0].batches(2):
        partners, _ = draw_mix(config, SEED, 2, batch.ids, N)
        assert batch.labels.tolist() == LABELS[batch.ids].tolist()
        assert batch.partner_labels.tolist() == LABELS[partners].tolist()
        own = torch.stack([looks[sample] for sample in batch.ids.tolist()])
        other = torch.stack([looks[sample] for sample in partners.tolist()])
        if config.mixup:
            weight = batch.own_share[:, None, None, None]
            torch.testing.assert_close(batch.images, weight * own + (1 - weight) * other)
        else:
            from_own = (batch.images == own).all(1)
            assert (from_own | (batch.images == other).all(1)).all()
            assert (from_own.float().mean((1, 2)) >= batch.own_share - 1e-6).all()


def test_unmixed_batches_have_no_partners(resident):
    batch = next(ranks(resident, MOVES, 8, 1)[0].batches(0))
    assert batch.partner_labels is None
    assert batch.own_share is None


def test_partners_come_from_the_whole_training_set(resident):
    """Not from the batch: then the result would depend on it."""
    met = set()
    for epoch in range(30):
        for batch in ranks(resident, MIXUP, 8, 1)[0].batches(epoch):
            met |= {(int(own), int(other)) for own, other in zip(batch.labels, batch.partner_labels, strict=True)}
    assert met == set(itertools.product(range(10), range(10)))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, N), st.integers(2, 40), st.integers(1, 7), st.booleans())
def test_every_rank_takes_every_step_and_what_counts_adds_up(num_samples, batch_size, size, drop_last):
    """A rank whose share is empty is given one sample that does not count, so that it can step with its peers."""
    store = ResidentStore(IMAGES[:num_samples], LABELS[:num_samples], CPU)
    loaders = ranks(store, AugmentConfig(), batch_size, size, drop_last=drop_last)
    counted = 0
    for step, batches in enumerate(zip(*[loader.batches(1) for loader in loaders], strict=True)):
        total = min(batch_size, num_samples - step * batch_size)
        assert {batch.total for batch in batches} == {total}
        assert sum(batch.counted for batch in batches) == total
        for batch in batches:
            assert len(batch.ids) == len(batch.images) == len(batch.labels) == max(batch.counted, 1)
            assert set(batch.ids.tolist()) <= set(range(num_samples))
        counted += total
    assert counted == (num_samples // batch_size * batch_size if drop_last else num_samples)


def test_all_ranks_agree_on_the_number_of_steps(resident):
    for size, drop_last in itertools.product((1, 2, 4, 40), (False, True)):
        for loader in ranks(resident, AugmentConfig(), 8, size, drop_last=drop_last):
            steps = 4 if drop_last else 5
            assert loader.steps_per_epoch == steps
            assert len(list(loader.batches(0))) == steps


@pytest.mark.parametrize("config", [MIXUP, CUTMIX], ids=["mixup", "cutmix"])
def test_what_is_mixed_is_drawn_once_for_each_sample(resident, config, monkeypatch):
    drawn = []
    draw = pixels.draw_mix
    monkeypatch.setattr(pixels, "draw_mix", lambda *given: (drawn.extend(given[3]), draw(*given))[1])
    batches = list(ranks(resident, config, 8, 1)[0].batches(1))
    assert drawn == [sample for batch in batches for sample in batch.ids]


# ---- resume


@pytest.mark.parametrize("config", [MOVES, MIXUP, COMPUTED], ids=["moves", "mixup", "computed"])
@pytest.mark.parametrize("size", [1, 3])
def test_resuming_at_any_epoch_and_step_gives_the_tail_of_the_uninterrupted_epoch(resident, config, size):
    loaders = ranks(resident, config, 8, size)
    for epoch in (0, 4):
        whole = global_batches(loaders, epoch)
        for step in range(6):
            assert_same(global_batches(loaders, epoch, first_step=step), whole[step:])


def test_a_streamed_epoch_resumes_at_any_step(streamed, resident):
    whole = global_batches(ranks(resident, MOVES, 8, 1), 2)
    loaders = ranks(streamed, MOVES, 8, 1)
    for step in range(6):
        assert_same(global_batches(loaders, 2, first_step=step), whole[step:])


def test_a_run_may_go_on_with_another_number_of_ranks(resident):
    """Step 3 and 4 of an epoch that one rank began are the same for four."""
    whole = global_batches(ranks(resident, MOVES, 8, 1), 1)
    assert_same(global_batches(ranks(resident, MOVES, 8, 4), 1, first_step=3), whole[3:])


def test_pictures_grow_with_the_training_and_are_the_whole_ones_shrunk(resident):
    """Three epochs of ceil(N/8) steps: 5 pixels until a third of them, then 7 until a half, then all 8."""
    growing = replace(MOVES, progressive=("5@0.3333", "7@0.5"))
    (loader,), (whole,) = (ranks(resident, config, 8, 1, epochs=3) for config in (growing, MOVES))
    sides = []
    for epoch in range(3):
        for step in range(loader.steps_per_epoch):
            batch, full = next(loader.batches(epoch, step)), next(whole.batches(epoch, step))
            sides.append(batch.images.shape[2])
            shrunk = full.images if sides[-1] == SIZE else resize(full.images, sides[-1])
            assert torch.equal(batch.images, shrunk)
            assert batch.images.shape[3] == sides[-1]
    steps = loader.steps_per_epoch
    half = -(-steps // 2)
    assert sides == [5] * steps + [7] * half + [SIZE] * (2 * steps - half)


def test_an_epoch_over_the_hardest_images_is_the_rest_of_the_whole_order(resident):
    (loader,) = ranks(resident, MOVES, 8, 1)
    losses = np.random.default_rng(1).random(N).astype(np.float32)
    batches = list(loader.batches(2, 0, 20, losses))
    order = epoch_order(SEED, 2, N)
    expected = [i for i in order if losses[i] >= np.sort(losses)[-20]]
    assert np.concatenate([batch.ids for batch in batches]).tolist() == expected
    assert [len(batch.ids) for batch in batches] == [8, 8, 4]
    assert len(list(loader.batches(2, 2, 20, losses))) == 1


def test_ending_a_streamed_epoch_early_30_times_leaves_no_thread(streamed):
    loader = ranks(streamed, MOVES, 8, 1)[0]
    next(loader.batches(0))
    threads = threading.active_count()
    for epoch in range(30):
        for _batch in loader.batches(epoch):
            break
    assert threading.active_count() == threads


def test_a_batch_keeps_its_pixels_while_later_ones_are_read(streamed):
    """FFCV reuses its buffers; what the loader hands out must not lie in them."""
    loader = TrainLoader(streamed, unchanged(), 4, SEED, World())
    kept = list(loader.batches(0))
    kept += EvalLoader(streamed, unchanged(), 4, World()).batches()
    for batch in kept:
        assert shown_ids(batch) == batch.ids.tolist()
        assert batch.labels.tolist() == LABELS[batch.ids].tolist()


# ---- contract 4: evaluation


def evaluated(store, batch_size, size):
    """The batches of all ranks, rank by rank."""
    loaders = [EvalLoader(store, unchanged(), batch_size, World(rank, size, CPU)) for rank in range(size)]
    assert {loader.num_samples for loader in loaders} == {store.num_samples}
    return [list(loader.batches()) for loader in loaders]


def assert_each_sample_once(batches, num_samples):
    ids = [sample for batch in batches for sample in batch.ids.tolist()]
    assert sorted(ids) == list(range(num_samples))
    assert sum(batch.counted for batch in batches) == num_samples
    for batch in batches:
        assert batch.counted == batch.total == len(batch.images)
        assert shown_ids(batch) == batch.ids.tolist()
        assert batch.labels.tolist() == LABELS[batch.ids % N].tolist()


@pytest.mark.parametrize("batch_size", [1, 64, 100])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_evaluation_counts_are_the_same_for_any_ranks_and_batch_size(batch_size, size):
    count = 251  # prime: no split is even
    images = np.resize(IMAGES, (count, SIZE, SIZE, 3))
    images[:, 0, 0, 0] = np.arange(count)
    store = ResidentStore(images, LABELS[np.arange(count) % N], CPU)
    by_rank = evaluated(store, batch_size, size)
    assert_each_sample_once([batch for batches in by_rank for batch in batches], count)
    assert max(len(batch.ids) for batches in by_rank for batch in batches) <= batch_size
    lengths = [sum(batch.counted for batch in batches) for batches in by_rank]
    assert max(lengths) - min(lengths) <= 1


@settings(max_examples=25, deadline=None)
@given(st.integers(1, N), st.integers(1, 40), st.integers(1, 40))
def test_evaluation_counts_each_sample_once_also_with_more_ranks_than_samples(num_samples, batch_size, size):
    store = ResidentStore(IMAGES[:num_samples], LABELS[:num_samples], CPU)
    by_rank = evaluated(store, batch_size, size)
    assert_each_sample_once([batch for batches in by_rank for batch in batches], num_samples)


@pytest.mark.parametrize("size", [1, 3, 40])
def test_streamed_evaluation_counts_each_sample_once(streamed, size):
    by_rank = evaluated(streamed, 4, size)
    assert_each_sample_once([batch for batches in by_rank for batch in batches], N)


def test_evaluation_is_not_augmented_and_does_not_depend_on_the_batch(resident):
    alone = [EvalLoader(resident, pipeline(config), 1, World()) for config in (MOVES, MIXUP, AugmentConfig())]
    together = next(EvalLoader(resident, pipeline(MOVES), 100, World()).batches()).images
    for loader in alone:
        assert torch.equal(torch.cat([batch.images for batch in loader.batches()]), together)
