"""Contract 4: every sample is counted exactly once, at any world and batch size, by a net in evaluation mode."""

import contextlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from distcifar.training.evaluate import ROUNDED, SURE, evaluate, evaluating, predict
from distcifar.training.metrics import Evaluation
from distcifar.world import World
from tests.support import NORM_CNN, ONE, fresh, rank_worlds, small_recipe

SETTINGS = {"num_classes": 4, "precision": "fp32", "views": "none"}


class OneAfterAnother(World):
    """A rank whose peers run before it in this process: `sum` gives what has been summed so far."""

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        self.so_far.append(values.clone())
        return torch.stack(self.so_far).sum(0)


def over_ranks(size: int, *, test: int, eval_batch: int) -> Evaluation:
    """The evaluation of the test split on `size` ranks, as its last rank sees it."""
    so_far: list[torch.Tensor] = []
    for plain in rank_worlds(size):
        world = OneAfterAnother(plain.rank, plain.size)
        object.__setattr__(world, "so_far", so_far)
        state, data = fresh(small_recipe(model=NORM_CNN), world, test=test, eval_batch=eval_batch)
        try:
            result = evaluate(state.model, data.loaders.test, world, **SETTINGS)
        except RuntimeError as error:
            assert "counted" in str(error)
            assert plain.rank < size - 1, "only the ranks that have not heard of the others may miss samples"
    return result


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize(("test", "eval_batch"), [(17, 10), (17, 1), (17, 500), (4, 2)])  # 4: more ranks than samples
def test_every_sample_counts_once_at_any_world_and_batch_size(size: int, test: int, eval_batch: int):
    state, data = fresh(small_recipe(model=NORM_CNN), test=test)
    state.model.eval()
    (whole,) = data.loaders.test.store.fetch([torch.arange(test).numpy()])
    with torch.no_grad():
        logits = state.model(data.loaders.test.pixels.evaluate(whole[0], whole[1]))
    labels = whole[2]
    result = over_ranks(size, test=test, eval_batch=eval_batch)
    assert result.count == test
    assert result.confusion.sum(1).tolist() == torch.bincount(labels, minlength=4).tolist()
    assert result.confusion.sum(0).tolist() == torch.bincount(logits.argmax(1), minlength=4).tolist()
    assert result.accuracy == (logits.argmax(1) == labels).sum().item() / test
    assert result.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)


def test_a_missing_sample_is_noticed():
    state, data = fresh(small_recipe(), rank_worlds(2)[0])  # one of two ranks, whose peer adds nothing
    with pytest.raises(RuntimeError, match="counted 9 samples of a split of 17"):
        evaluate(state.model, data.loaders.test, ONE, **SETTINGS)


def test_flip_averages_the_logits_of_the_image_and_its_mirror_image():
    state, data = fresh(small_recipe(model=NORM_CNN))
    result = evaluate(state.model, data.loaders.test, ONE, **{**SETTINGS, "views": "flip"})
    state.model.eval()
    loss, correct = 0.0, 0
    with torch.no_grad():
        for batch in data.loaders.test.batches():
            mirrored = torch.from_numpy(batch.images.numpy()[:, :, :, ::-1].copy())
            logits = (state.model(batch.images) + state.model(mirrored)) / 2
            loss += F.cross_entropy(logits, batch.labels, reduction="sum").item()
            correct += (logits.argmax(1) == batch.labels).sum().item()
    assert result.loss == pytest.approx(loss / 17, rel=1e-5)
    assert result.accuracy == correct / 17
    assert result.loss != evaluate(state.model, data.loaders.test, ONE, **SETTINGS).loss


def shifted_by_hand(net: torch.nn.Module, image: torch.Tensor) -> torch.Tensor:
    """Logits [classes] of one image [C, S, S], and where they leave a doubt those of airbench94's six views."""

    def answer(picture: np.ndarray) -> np.ndarray:
        both = np.stack([picture, picture[:, :, ::-1]])
        return net(torch.from_numpy(both)).numpy().mean(0)

    picture = image.numpy()
    first = net(image[None]).numpy()[0]
    shares = np.sort(np.exp(first) / np.exp(first).sum())
    if shares[-1] - shares[-2] >= SURE:
        return torch.from_numpy(first)
    padded, side = np.pad(picture, ((0, 0), (1, 1), (1, 1)), mode="reflect"), picture.shape[1]
    moved = [answer(padded[:, :side, :side]), answer(padded[:, 2:, 2:])]
    return torch.from_numpy(0.5 * answer(picture) + 0.25 * moved[0] + 0.25 * moved[1])


@torch.no_grad()
def test_shift_looks_again_at_the_images_that_are_in_doubt_and_at_no_others():
    state, data = fresh(small_recipe(model=NORM_CNN), test=40)
    net = state.model.eval()
    with torch.no_grad():
        net.head.weight *= 25.0  # so that some answers are sure
    batch = next(data.loaders.test.batches())
    images = batch.images.contiguous()
    expected = torch.stack([shifted_by_hand(net, image) for image in images])
    plain = predict(net, images, "none")
    again = (expected - plain).abs().amax(1) > 1e-5
    assert 0 < again.sum() < len(images), "the case has both kinds"
    torch.testing.assert_close(predict(net, images, "shift"), expected, rtol=1e-4, atol=1e-5)
    alone = torch.cat([predict(net, image[None], "shift") for image in images])
    torch.testing.assert_close(alone, expected, rtol=1e-4, atol=1e-5)
    sizes: list[int] = []
    net.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    predict(net, images, "shift")
    assert sizes == [len(images)] + [ROUNDED] * 5, "kept memory does not fit batches of ever other sizes"


def test_evaluation_changes_neither_modes_nor_statistics_nor_random_numbers():
    state, data = fresh(small_recipe(model=NORM_CNN))
    state.model.train()
    state.model.body[1].eval()  # as a frozen norm is
    modes = [module.training for module in state.model.modules()]
    tensors = {name: value.clone() for name, value in state.model.state_dict().items()}
    random = torch.get_rng_state()
    evaluate(state.model, data.loaders.test, ONE, **SETTINGS)
    assert [module.training for module in state.model.modules()] == modes
    assert all(torch.equal(value, tensors[name]) for name, value in state.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in state.model.parameters())


def test_modes_come_back_after_an_error_too():
    net = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.BatchNorm1d(2))
    net[1].eval()
    with pytest.raises(ZeroDivisionError), evaluating(net):
        assert [module.training for module in net.modules()] == [False] * 3
        raise ZeroDivisionError
    assert [module.training for module in net.modules()] == [True, True, False]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize(("test", "eval_batch"), [(17, 10), (17, 1), (17, 4), (4, 2), (1, 1)])
def test_all_ranks_are_asked_equally_often_whether_to_stop(size: int, test: int, eval_batch: int):
    """The question is a collective: a rank that asks once more waits for ever."""
    asked: list[list[int]] = []
    so_far: list[torch.Tensor] = []
    for plain in rank_worlds(size):
        world = OneAfterAnother(plain.rank, plain.size)
        object.__setattr__(world, "so_far", so_far)
        state, data = fresh(small_recipe(), world, test=test, eval_batch=eval_batch)
        mine: list[int] = []
        asked.append(mine)
        with contextlib.suppress(RuntimeError):  # ranks that have not heard of the others miss samples
            evaluate(
                state.model, data.loaders.test, world, **SETTINGS,
                interrupted=lambda number, world, mine=mine: bool(mine.append(number)),
            )  # fmt: skip
    assert asked == [asked[0]] * size
    assert asked[0] == list(range(len(asked[0])))
    if size == 1:
        assert len(asked[0]) == -(-test // eval_batch)


@pytest.mark.parametrize("batch", [0, 1])
def test_an_interrupted_evaluation_has_no_result_and_leaves_nothing_changed(batch: int):
    state, data = fresh(small_recipe(model=NORM_CNN))
    state.model.train()
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    seen: list[int] = []
    state.model.register_forward_hook(lambda *_: seen.append(1))
    result = evaluate(
        state.model, data.loaders.test, ONE, **SETTINGS, interrupted=lambda number, world: number == batch
    )
    assert result is None
    assert len(seen) == batch, "the rest of the split is not read"
    assert state.model.training
    assert all(torch.equal(value, before[name]) for name, value in state.model.state_dict().items())
