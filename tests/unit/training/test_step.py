"""Contract 3: a step's gradient is that of the mean loss over the global batch, however the batch is split."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from distcifar.config import AugmentConfig, ModelConfig, OptimConfig, Recipe
from distcifar.data.loader import Batch
from distcifar.data.waiting import moment, seconds_between
from distcifar.training.state import TrainState
from distcifar.training.step import Losses, sample_losses, train_step
from distcifar.world import World
from tests.support import NORM_CNN, fresh, rank_worlds, small_recipe

SGD = OptimConfig(lr=0.1, momentum=0.0)
LAST = 2  # of the steps of 16, 16 and 8 images
CASES = {
    "plain": {},
    "label smoothing": {"label_smoothing": 0.2},
    "mixup": {"augment": AugmentConfig(mixup=0.7), "label_smoothing": 0.1},
    "cutmix": {"augment": AugmentConfig(cutmix=1.0)},
}


def batch_of(recipe: Recipe, step: int, world: World = World(), train: int = 40) -> tuple[TrainState, Batch]:
    state, data = fresh(recipe, world, train=train)
    return state, next(data.loaders.train.batches(0, step))


def gradients(state: TrainState) -> list[torch.Tensor]:
    return [p.grad.clone() for p in state.model.parameters()]


def mean_loss(state: TrainState, batch: Batch, recipe: Recipe) -> torch.Tensor:
    """Torch's own mean over the whole batch, with the labels as distributions."""
    target = F.one_hot(batch.labels, 4).float()
    if batch.partner_labels is not None:
        own = batch.own_share[:, None]
        target = own * target + (1 - own) * F.one_hot(batch.partner_labels, 4)
    return F.cross_entropy(state.model(batch.images), target, label_smoothing=recipe.label_smoothing)


@pytest.mark.parametrize("accumulate", [1, 2, 3, 5])
@pytest.mark.parametrize("case", CASES)
def test_parts_of_an_uneven_last_batch_add_up_to_the_gradient_of_its_mean_loss(case: str, accumulate: int):
    recipe = small_recipe(optim=replace(SGD, accumulate=accumulate), **CASES[case])
    state, batch = batch_of(recipe, LAST)
    assert len(batch.labels) == 8
    loss = mean_loss(state, batch, recipe)
    expected = torch.autograd.grad(loss, list(state.model.parameters()))
    result = train_step(Losses(state.model), state, recipe, batch, World())
    torch.testing.assert_close(gradients(state), list(expected), rtol=1e-5, atol=1e-6)
    assert result.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    norm = torch.cat([g.flatten() for g in expected]).norm()
    assert result.grad_norm.item() == pytest.approx(norm.item(), rel=1e-5)


@pytest.mark.parametrize("size", [2, 3, 7])
@pytest.mark.parametrize(("train", "step"), [(40, LAST), (33, LAST)])  # last batches of 8 and of 1: empty shares
def test_the_mean_of_the_ranks_gradients_is_the_gradient_of_the_global_mean(size: int, train: int, step: int):
    """DDP averages gradients over ranks; here the ranks are played one after another and averaged by hand."""
    recipe = small_recipe(optim=replace(SGD, accumulate=2), augment=AugmentConfig(mixup=0.5))
    whole, batch = batch_of(recipe, step, train=train)
    loss = mean_loss(whole, batch, recipe)
    expected = torch.autograd.grad(loss, list(whole.model.parameters()))
    found, total, tallied = [torch.zeros_like(g) for g in expected], 0.0, 0
    for world in rank_worlds(size):
        state, share = batch_of(recipe, step, world, train=train)
        total += train_step(Losses(state.model), state, recipe, share, world).loss.item()
        found = [f + g / size for f, g in zip(found, gradients(state), strict=True)]
        tallied += state.tally.sums[2].item()
    torch.testing.assert_close(found, list(expected), rtol=1e-5, atol=1e-6)
    assert total == pytest.approx(loss.item(), rel=1e-5)
    assert tallied == len(batch.labels), "each image is tallied on one rank"


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("weights", [(4, 12), (12, 4), (2, 11, 3)])
@pytest.mark.parametrize(("train", "step"), [(40, 0), (40, LAST), (33, LAST)])  # of 16, 8 and 1: empty shares
def test_parts_by_weight_leave_the_gradient_of_the_global_mean(
    weights: tuple[int, ...], accumulate: int, train: int, step: int
):
    recipe = small_recipe(optim=replace(SGD, accumulate=accumulate), augment=AugmentConfig(mixup=0.5))
    whole, batch = batch_of(recipe, step, train=train)
    loss = mean_loss(whole, batch, recipe)
    expected = torch.autograd.grad(loss, list(whole.model.parameters()))
    found, counted = [torch.zeros_like(g) for g in expected], []
    for world in rank_worlds(len(weights)):
        state, data = fresh(recipe, world, train=train)
        share = next(data.loaders.weighted(weights).train.batches(0, step))
        train_step(Losses(state.model), state, recipe, share, world)
        found = [f + g / world.size for f, g in zip(found, gradients(state), strict=True)]
        counted.append(share.counted)
    torch.testing.assert_close(found, list(expected), rtol=1e-5, atol=1e-6)
    assert sum(counted) == len(batch.labels)
    if step == 0:
        assert tuple(counted) == weights


def test_an_empty_share_adds_nothing_to_gradient_loss_or_tally():
    recipe = small_recipe(optim=SGD)
    empty = [world for world in rank_worlds(3) if batch_of(recipe, LAST, world, train=33)[1].counted == 0]
    assert len(empty) == 2
    for world in empty:
        state, batch = batch_of(recipe, LAST, world, train=33)
        result = train_step(Losses(state.model), state, recipe, batch, world)
        assert all(torch.equal(g, torch.zeros_like(g)) for g in gradients(state))
        assert result.loss.item() == 0.0
        assert state.tally.sums.tolist() == [0, 0, 0]


@pytest.mark.parametrize(("size", "train"), [(1, 33), (2, 34), (3, 33)])  # last batches of one, two and one image
def test_batchnorm_on_maps_of_one_pixel_bears_a_share_of_one_image(size: int, train: int):
    """resnet18-d2l ends in 1x1 maps and its 45,000 images leave a last batch of 8: eight workers have one each."""
    recipe = small_recipe(model=ModelConfig(name="resnet", widths=(4, 4, 4, 4), blocks=1), optim=SGD)
    for world in rank_worlds(size):
        state, batch = batch_of(recipe, LAST, world, train=train)
        assert batch.counted <= 1
        assert math.isfinite(train_step(Losses(state.model.train()), state, recipe, batch, world).loss.item())


def test_more_parts_than_images_are_as_many_parts_as_images():
    recipe = small_recipe(batch_size=16, optim=replace(SGD, accumulate=16))
    state, batch = batch_of(recipe, LAST)
    expected = torch.autograd.grad(mean_loss(state, batch, recipe), list(state.model.parameters()))
    train_step(Losses(state.model), state, recipe, batch, World())
    torch.testing.assert_close(gradients(state), list(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("clip", [0.01, 0.2, 1e6])
def test_a_long_gradient_is_shortened_to_the_clip_norm_and_reported_as_it_was(clip: float):
    unclipped, batch = batch_of(small_recipe(optim=SGD), 0)
    norm = train_step(Losses(unclipped.model), unclipped, unclipped.recipe, batch, World()).grad_norm.item()
    state, batch = batch_of(small_recipe(optim=replace(SGD, clip_norm=clip)), 0)
    assert train_step(Losses(state.model), state, state.recipe, batch, World()).grad_norm.item() == pytest.approx(norm)
    clipped = torch.cat([g.flatten() for g in gradients(state)]).norm().item()
    assert clipped == pytest.approx(min(norm, clip), rel=1e-4)


def test_a_mixture_costs_each_label_by_its_share():
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 0.5]])
    log = logits.log_softmax(1)
    expected = torch.tensor([-0.75 * log[0, 0] - 0.25 * log[0, 2], -log[1, 1]])
    found = sample_losses(logits, torch.tensor([0, 1]), torch.tensor([2, 1]), torch.tensor([0.75, 0.1]), 0.0)
    torch.testing.assert_close(found, expected)


def test_the_average_is_the_one_that_a_hand_would_write():
    """The first step copies; then average = decay x average + (1 - decay) x weights; buffers are the model's."""
    recipe = small_recipe(model=NORM_CNN, ema_decay=0.75, optim=OptimConfig(lr=0.05))
    state, data = fresh(recipe)
    expected: dict[str, torch.Tensor] = {}
    for epoch in range(2):
        for batch in data.loaders.train.batches(epoch):
            train_step(Losses(state.model), state, recipe, batch, World())
            for name, weight in state.model.named_parameters():
                now = weight.detach().clone()
                expected[name] = 0.75 * expected[name] + 0.25 * now if name in expected else now
    average = dict(state.evaluated.named_parameters())
    assert average.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(average[name].detach(), value)
    assert not torch.equal(average["head.weight"], state.model.head.weight)
    for name, buffer in state.model.named_buffers():
        assert torch.equal(buffer, state.evaluated.get_buffer(name)), name


def test_fp16_scales_the_loss_and_skips_a_step_with_an_infinite_gradient():
    recipe = small_recipe(optim=SGD)
    state, batch = batch_of(recipe, 0)
    state.set_precision("fp16")
    before = [p.detach().clone() for p in state.model.parameters()]
    poisoned = replace(batch, images=batch.images * 3e38)
    result = train_step(Losses(state.model), state, recipe, poisoned, World())
    assert not math.isfinite(result.grad_norm.item())
    assert all(torch.equal(p.detach(), b) for p, b in zip(state.model.parameters(), before, strict=True))
    assert state.scaler.get_scale() == 2.0**15, "halved"
    result = train_step(Losses(state.model), state, recipe, batch, World())
    assert math.isfinite(result.grad_norm.item())
    assert result.grad_norm.item() < 100, "the norm is reported without the scale"
    assert not torch.equal(next(state.model.parameters()).detach(), before[0])


@pytest.mark.parametrize("microbatch", [1, 2, 3, 5, 8, 9])
def test_a_microbatch_bounds_the_images_in_one_pass_and_leaves_the_gradient(microbatch: int):
    """Down to two images: BatchNorm needs as many."""
    recipe = small_recipe(optim=SGD)
    whole, batch = batch_of(recipe, LAST)
    train_step(Losses(whole.model), whole, recipe, batch, World())
    state, batch = batch_of(recipe, LAST)
    seen: list[int] = []
    state.model.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    train_step(Losses(state.model), state, recipe, batch, World(), microbatch=microbatch)
    assert sum(seen) == 8
    assert max(seen) <= max(2, microbatch)
    torch.testing.assert_close(gradients(state), gradients(whole), rtol=1e-5, atol=1e-6)
    assert torch.equal(state.tally.sums[1:], whole.tally.sums[1:])


@pytest.mark.gpu
def test_a_gpu_times_when_its_own_gradient_is_there(tmp_path: Path):
    """By its own clock: before DDP's exchange, and without the host waiting."""
    cuda = torch.device("cuda", 0)
    torch.cuda.set_device(cuda)
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        state, batch = batch_of(small_recipe(optim=SGD), 0, World(device=cuda))
        net = DistributedDataParallel(Losses(state.model), device_ids=[cuda], find_unused_parameters=True)
        for _ in range(3):
            asked = moment(cuda)
            result = train_step(net, state, state.recipe, batch, World(device=cuda))
            done = moment(cuda)
            torch.cuda.synchronize()
            assert 0 < seconds_between(asked, result.ready) <= seconds_between(asked, done)
    finally:
        dist.destroy_process_group()


def test_the_smaller_of_microbatch_and_accumulated_parts_counts():
    recipe = small_recipe(optim=replace(SGD, accumulate=4))
    for microbatch, parts in ((0, 4), (6, 4), (2, 4), (8, 4)):
        state, batch = batch_of(recipe, LAST)
        seen: list[int] = []
        state.model.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(len(inputs[0])))
        train_step(Losses(state.model), state, recipe, batch, World(), microbatch=microbatch)
        assert len(seen) == parts
