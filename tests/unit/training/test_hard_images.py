"""Epochs over the hardest images: which they are, and that a run goes on alike (several ranks: test_engine.py)."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from distcifar.config import AugmentConfig, Recipe
from distcifar.data.plan import epoch_order, hardest
from distcifar.errors import ConfigError
from distcifar.training.checkpoint import load_checkpoint, save_checkpoint
from tests.support import NORM_CNN, fresh, reports, rows_of, small_recipe

HARD = {"epochs": 4, "hard_share": 0.4, "hard_from": 0.5}  # of 40 images 16: one step in epochs 3 and 4


@given(
    losses=arrays(np.float32, st.integers(1, 60), elements=st.sampled_from([0.0, 0.5, 1.0, 2.5, np.inf])),
    count=st.integers(1, 60),
    epoch=st.integers(0, 5),
)
def test_no_image_that_is_left_out_is_harder_than_one_that_stays(losses: np.ndarray, count: int, epoch: int):
    order = epoch_order(3, epoch, len(losses))
    chosen = hardest(order, losses, count)
    assert len(chosen) == min(count, len(losses)) == len(set(chosen))
    left = np.setdiff1d(order, chosen)
    if len(left):
        assert losses[left].max() <= losses[chosen].min()
    places = {sample: place for place, sample in enumerate(order)}
    assert [places[sample] for sample in chosen] == sorted(places[sample] for sample in chosen), "in the epoch's order"


def test_of_those_never_seen_the_order_chooses():
    order = epoch_order(0, 1, 50)
    assert hardest(order, np.full(50, np.inf, np.float32), 20).tolist() == order[:20].tolist()


@pytest.mark.parametrize(
    ("share", "after", "epochs", "images"),
    [(1.0, 0.0, 3, [40] * 3), (0.5, 0.0, 3, [40, 20, 20]), (0.5, 0.5, 4, [40, 40, 20, 20]), (0.01, 0.9, 2, [40, 40])],
)
def test_which_epochs_are_short(share: float, after: float, epochs: int, images: list[int]):
    recipe = small_recipe(epochs=epochs, hard_share=share, hard_from=after)
    assert [recipe.images_of(epoch, 40) for epoch in range(epochs)] == images
    if share > 0.01:  # of which 40 images have not one
        assert recipe.passes(epochs) == pytest.approx(sum(images) / 40)
        assert recipe.passes(1.5) == pytest.approx((images[0] + images[1] / 2) / 40)


def seen_by(recipe: Recipe) -> tuple[list[list[int]], np.ndarray]:
    """The ids of each epoch's steps, and all losses in the end."""
    state, data = fresh(recipe)
    ids: list[list[int]] = [[] for _ in range(recipe.epochs)]
    batches = type(data.loaders.train).batches

    class Watched(type(data.loaders.train)):  # type: ignore[misc]
        def batches(self, epoch, *rest):
            for batch in batches(self, epoch, *rest):
                ids[epoch] += batch.ids.tolist()
                yield batch

    object.__setattr__(data.loaders.train, "__class__", Watched)
    for _ in reports(state, data):
        pass
    assert state.hard is not None
    return ids, state.hard.losses.numpy()


def test_later_epochs_go_over_the_images_whose_last_loss_was_highest():
    """Written out: the losses after epoch 2 are those of a recipe of two whole epochs with the same learning rates."""
    ids, losses = seen_by(small_recipe(model=NORM_CNN, **HARD))
    assert [len(epoch) for epoch in ids] == [40, 40, 16, 16]
    _, after_two = seen_by(small_recipe(model=NORM_CNN, epochs=2, hard_share=0.4, hard_from=1.0))
    assert set(ids[2]) == set(np.argsort(-after_two)[:16].tolist())
    left = np.setdiff1d(np.arange(40), ids[2] + ids[3])
    assert losses[left].tolist() == after_two[left].tolist(), "who is left out keeps its loss"
    assert np.isfinite(losses).all()


@pytest.mark.parametrize("stop", [2, 6, 7])  # in epoch 1, before epoch 3, before epoch 4
def test_a_run_that_goes_on_ends_bitwise_alike(stop: int, tmp_path):
    recipe = small_recipe(model=NORM_CNN, **HARD)
    whole, data = fresh(recipe)
    rows = [row for report in reports(whole, data) for row in rows_of(report)]
    assert sum(row["kind"] == "step" for row in rows) == 3 + 3 + 1 + 1
    state, data = fresh(recipe)
    steps = reports(state, data)
    while state.progress.step < stop:
        next(steps)
    save_checkpoint(tmp_path, state, {})
    again, data = fresh(recipe)
    load_checkpoint(next(tmp_path.glob("step-*"))).restore(again)
    for _ in reports(again, data):
        pass
    expected = whole.tensors()
    assert all(torch.equal(value, expected[name]) for name, value in again.tensors().items())


def test_a_mixture_s_loss_says_nothing_about_an_image():
    with pytest.raises(ConfigError, match=r"hard_share is 0\.4 with mixup or cutmix"):
        small_recipe(hard_share=0.4, augment=AugmentConfig(mixup=0.2))
