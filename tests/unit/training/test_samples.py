"""Sample predictions: the surest mistakes of the first test images, the same at any world size, read without pickle."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distcifar.data.loader import EvalLoader
from distcifar.training import samples as module
from distcifar.training.evaluate import evaluate
from distcifar.training.samples import MOST_MISTAKES, SHOWN, Samples, choose, sample_predictions
from tests.support import NORM_CNN, ONE, fresh, rank_worlds, small_recipe, train

PLAIN = {"precision": "fp32", "views": "none"}


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.sampled_from([0.4, 0.6, 0.9])), max_size=80))
def test_the_surest_mistakes_come_first_and_then_the_first_that_are_right(rows: list[tuple[int, int, float]]):
    labels, predictions = (np.array([row[i] for row in rows], dtype=np.int64) for i in (0, 1))
    confidence = np.array([row[2] for row in rows], dtype=np.float32)
    chosen = choose(labels, predictions, confidence).tolist()
    wrong = [i for i, row in enumerate(rows) if row[0] != row[1]]
    right = [i for i, row in enumerate(rows) if row[0] == row[1]]
    worst = sorted(wrong, key=lambda i: (-rows[i][2], i))[:MOST_MISTAKES]
    assert chosen == worst + right[: SHOWN - len(worst)]


def shown(test: int = 60, eval_batch: int = 7, *, views: str = "none", world=ONE) -> tuple[Samples, EvalLoader]:
    state, data = fresh(small_recipe(model=NORM_CNN), world, test=test, eval_batch=eval_batch)
    return sample_predictions(state.model, data.loaders.test, precision="fp32", views=views), data.loaders.test


@pytest.mark.parametrize("views", ["none", "flip", "shift"])
def test_they_are_what_the_evaluation_has_counted(views: str):
    """Of a split that is shown whole: each cell of the confusion matrix."""
    state, data = fresh(small_recipe(model=NORM_CNN, epochs=4), test=20)
    train(state, data)
    settings = {"precision": "fp32", "views": views}
    found = sample_predictions(state.model, data.loaders.test, **settings)
    measured = evaluate(state.model, data.loaders.test, ONE, num_classes=4, **settings)
    counts = np.zeros((4, 4), dtype=np.int64)
    np.add.at(counts, (found.labels, found.predictions), 1)
    assert counts.tolist() == measured.confusion.tolist()
    assert 0 < measured.accuracy < 1, "both kinds are there"


def test_the_pixels_are_those_that_are_stored_and_the_confidence_is_softmax_s():
    found, loader = shown()
    images, labels = loader.store._images.numpy(), loader.store._labels.numpy()
    places = [next(i for i in range(60) if (images[i] == image).all()) for image in found.images]
    assert labels[places].tolist() == found.labels.tolist()
    state, _ = fresh(small_recipe(model=NORM_CNN))
    state.model.eval()
    with torch.no_grad():
        logits = state.model(loader.pixels.evaluate(loader.store._images, torch.tensor(places)))
    assert logits.argmax(1).tolist() == found.predictions.tolist()
    np.testing.assert_allclose(found.confidence, logits.softmax(1).max(1).values, rtol=1e-5)
    kinds = [array.dtype for array in (found.images, found.labels, found.predictions, found.confidence)]
    assert kinds == [np.uint8, np.int64, np.int64, np.float32]
    assert found.images.shape == (32, 8, 8, 3)


@pytest.mark.parametrize("size", [1, 2, 7])
def test_each_rank_finds_the_same_at_any_world_size_and_asks_no_other(size: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.distributed.all_reduce", lambda *_: pytest.fail("a collective"))
    alone, _ = shown()
    for world in rank_worlds(size):
        found, _ = shown(world=world)
        assert found.npz() == alone.npz()


def test_only_the_first_images_are_looked_at(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "LOOKED_AT", 10)
    found, loader = shown(test=60, eval_batch=4)
    assert len(found.labels) == 10
    assert sorted(found.labels.tolist()) == sorted(loader.store._labels[:10].tolist())


def test_a_small_split_is_shown_whole():
    found, _ = shown(test=3)
    assert len(found.images) == 3


def test_the_file_holds_plain_arrays_that_are_read_without_pickle():
    found, _ = shown()
    with np.load(io.BytesIO(found.npz()), allow_pickle=False) as file:
        assert sorted(file.files) == ["confidence", "images", "labels", "predictions"]
        for name in file.files:
            np.testing.assert_array_equal(file[name], getattr(found, name))


def test_the_net_s_modes_come_back_and_its_statistics_stay():
    state, data = fresh(small_recipe(model=NORM_CNN))
    state.model.train()
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    random = torch.get_rng_state()
    sample_predictions(state.model, data.loaders.test, **PLAIN)
    assert state.model.training
    assert all(torch.equal(value, before[name]) for name, value in state.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
