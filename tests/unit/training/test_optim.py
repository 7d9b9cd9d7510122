"""Parameter groups get the rates that the recipe promises, and Muon is the Muon of its paper and of torch."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from distcifar.config import ModelConfig, OptimConfig
from distcifar.errors import ConfigError
from distcifar.models import Net, build_model
from distcifar.recipes import get_recipe
from distcifar.training.newton_schulz import orthogonalise
from distcifar.training.optim import Muon, build_optimizers, scale_free_weights, set_learning_rate

CNN = ModelConfig(name="cnn", layout=("6", "M", "8"), hidden=(10,))
MODELS = {
    "linear": ModelConfig(name="linear"),
    "mlp": ModelConfig(name="mlp", hidden=(12, 9)),
    "cnn": CNN,
    "resnet": ModelConfig(name="resnet", widths=(4, 8), blocks=1),
    "whitened": ModelConfig(name="whitened", widths=(8, 8)),
}


def orthogonalised(matrix: torch.Tensor) -> torch.Tensor:
    return orthogonalise(matrix[None], steps=3)[0]


def net(config: ModelConfig = CNN, *, size: int = 8) -> Net:
    torch.manual_seed(0)
    return build_model(config, channels=3, size=size, num_classes=4)


def settings_of(model: nn.Module, config: OptimConfig) -> dict[str, dict]:
    """By parameter name, the group settings that it is trained with."""
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        names[id(p)]: {key: value for key, value in group.items() if key != "params"}
        for optimizer in build_optimizers(model, config)
        for group in optimizer.param_groups
        for p in group["params"]
    }


COMBINATIONS = [
    (model, name, freeze)
    for model in MODELS
    for name in ("sgd", "adam", "adamw", "muon")
    for freeze in (False, True)
    if name != "muon" or (model != "linear" and not freeze)  # nothing for muon to do there: see its refusal
]


@pytest.mark.parametrize(("model", "name", "freeze"), COMBINATIONS)
def test_every_learning_parameter_is_in_exactly_one_group_and_no_frozen_one_in_any(model, name, freeze):
    built = net(MODELS[model])
    if freeze:
        built.body.requires_grad_(False)
    config = OptimConfig(name=name, head_lr_factor=10, bias_lr_factor=3, decay_all=False, weight_decay=0.1)
    given = [id(p) for o in build_optimizers(built, config) for group in o.param_groups for p in group["params"]]
    assert len(given) == len(set(given))
    assert set(given) == {id(p) for p in built.parameters() if p.requires_grad}


def test_the_head_learns_at_its_factor_and_norm_biases_at_theirs():
    found = settings_of(net(), OptimConfig(lr=0.2, head_lr_factor=10, bias_lr_factor=64))
    rates = {name: group["lr"] for name, group in found.items()}
    assert rates.pop("head.weight") == rates.pop("head.bias") == pytest.approx(2.0)
    assert rates.pop("body.1.bias") == rates.pop("body.5.bias") == pytest.approx(12.8)  # the two BatchNorms
    assert set(rates.values()) == {0.2}, "convolutions, their biases and BatchNorm's weights keep the plain rate"
    assert {name: group["base_lr"] for name, group in found.items()} == {n: g["lr"] for n, g in found.items()}


def test_a_multiplier_scales_each_group_from_its_own_base_again_and_again():
    optimizers = build_optimizers(net(), OptimConfig(name="muon", lr=0.2, muon_lr=0.3, head_lr_factor=10))
    for factor in (0.5, 0.1, 1.0):
        set_learning_rate(optimizers, factor)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                assert group["lr"] == group["base_lr"] * factor
    bases = {group["base_lr"] for optimizer in optimizers for group in optimizer.param_groups}
    assert bases == {0.3, 0.2, 2.0}


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_decay_reaches_all_parameters_or_matrices_and_filters_only(name: str):
    model = net()
    everything = settings_of(model, OptimConfig(name=name, weight_decay=0.01))
    assert {group["weight_decay"] for group in everything.values()} == {0.01}
    some = settings_of(model, OptimConfig(name=name, weight_decay=0.01, decay_all=False))
    decayed = {parameter for parameter, group in some.items() if group["weight_decay"] == 0.01}
    assert decayed == {"body.0.weight", "body.4.weight", "body.8.weight", "head.weight"}
    assert {some[p]["weight_decay"] for p in some.keys() - decayed} == {0.0}


def test_names_and_numbers_reach_torchs_optimizers():
    (sgd,) = build_optimizers(net(), OptimConfig(lr=0.1, momentum=0.8, nesterov=True))
    assert type(sgd) is torch.optim.SGD
    assert (sgd.param_groups[0]["momentum"], sgd.param_groups[0]["nesterov"]) == (0.8, True)
    for name, kind in (("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)):
        (adam,) = build_optimizers(net(), OptimConfig(name=name, lr=0.1, betas=(0.5, 0.6)))
        assert type(adam) is kind
        assert adam.param_groups[0]["betas"] == (0.5, 0.6)


def test_muon_takes_matrices_and_filters_of_the_body_and_sgd_the_rest():
    model = net()
    muon, rest = build_optimizers(model, OptimConfig(name="muon", muon_lr=0.3, muon_momentum=0.5, lr=0.1))
    names = {id(p): name for name, p in model.named_parameters()}
    taken = [names[id(p)] for group in muon.param_groups for p in group["params"]]
    assert taken == ["body.0.weight", "body.4.weight", "body.8.weight"]
    assert {(group["lr"], group["momentum"]) for group in muon.param_groups} == {(0.3, 0.5)}
    assert type(rest) is torch.optim.SGD
    assert len([p for group in rest.param_groups for p in group["params"]]) == 9


def kept(model: Net, config: OptimConfig) -> dict[str, bool]:
    """By name, whether Muon keeps the norm of a weight that it takes."""
    settings = settings_of(model, config)
    return {name: group["keep_norm"] for name, group in settings.items() if "keep_norm" in group}


@pytest.mark.parametrize(
    ("config", "plain"),
    [
        (MODELS["mlp"], ["body.1.weight", "body.4.weight"]),
        (MODELS["cnn"], ["body.8.weight"]),
        (replace(CNN, batchnorm=False), ["body.0.weight", "body.3.weight", "body.6.weight"]),
        (MODELS["resnet"], []),
        (replace(MODELS["resnet"], stem_pool=True, blocks=2), []),
        (ModelConfig(name="resnet-d2l"), [f"body.{stage}.0.shortcut.weight" for stage in (2, 3, 4)]),
        (get_recipe("quick").model, []),
        (ModelConfig(name="torchvision-resnet18"), []),
    ],
    ids=["mlp", "cnn", "cnn without norms", "resnet", "resnet with a pool", "resnet-d2l", "quick", "torchvision"],
)
def test_muon_keeps_the_norm_of_a_weight_only_before_a_batchnorm(config: ModelConfig, plain: list[str]):
    keeps = kept(net(config, size=16), OptimConfig(name="muon"))
    assert keeps
    assert [name for name, norm_is_kept in keeps.items() if not norm_is_kept] == plain


@pytest.mark.parametrize("name", ["cnn", "resnet", "whitened"])
def test_a_weight_whose_norm_is_kept_may_be_scaled_without_a_change_of_the_output(name: str):
    """What scale_free_weights promises, asked of the net itself; the other weights are no such."""
    model = net(MODELS[name])
    images, free = torch.randn(16, 3, 8, 8), scale_free_weights(model)
    assert free
    before = model(images)
    for weight in [p for p in model.body.parameters() if p.ndim > 1]:
        with torch.no_grad():
            weight.mul_(3)
            after = model(images)
            weight.div_(3)
        assert torch.allclose(after, before, atol=2e-3) == (id(weight) in free)


@pytest.mark.parametrize("between", [nn.ReLU(), nn.Identity(), nn.Linear(4, 4), nn.Dropout(0.1)])
def test_a_norm_that_does_not_come_next_is_not_taken_for_the_weights(between: nn.Module):
    first = nn.Linear(4, 4)
    assert id(first.weight) not in scale_free_weights(nn.Sequential(first, between, nn.BatchNorm1d(4)))
    assert not scale_free_weights(nn.Sequential(nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4)))
    assert not scale_free_weights(nn.Sequential(nn.BatchNorm1d(4), first))


def test_weights_without_a_norm_take_muons_plain_step_and_the_recipes_decay():
    torch.manual_seed(7)
    model = net(MODELS["cnn"])
    muon, _ = build_optimizers(model, OptimConfig(name="muon", muon_lr=0.1, muon_momentum=0.0, weight_decay=0.5))
    with_norm, without = model.body[0].weight, model.body[8].weight
    start = without.detach().clone()
    for weight in (p for group in muon.param_groups for p in group["params"]):
        weight.grad = torch.randn_like(weight)
    muon.step()
    torch.testing.assert_close(without.detach(), (1 - 0.1 * 0.5) * start - 0.1 * orthogonalised(without.grad))
    step = 0.1 * orthogonalised(with_norm.grad.flatten(1)).view_as(with_norm)
    assert (with_norm.detach() + step).norm().item() == pytest.approx(len(with_norm) ** 0.5)


def test_muon_on_a_net_without_matrices_in_its_body_is_refused_in_words():
    """--optim.name muon on the recipe softmax: a mistake of the user, so one of the error family."""
    with pytest.raises(ConfigError, match="muon"):
        build_optimizers(net(ModelConfig(name="linear")), OptimConfig(name="muon"))


def their_muon(weight: nn.Parameter, momentum: float) -> torch.optim.Optimizer:
    """torch's Muon at our settings. It multiplies the rate of tall matrices by sqrt(rows / columns), which ours
    does not: that factor is divided away."""
    scale = max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5
    return torch.optim.Muon([weight], lr=0.1 / scale, weight_decay=0.0, momentum=momentum, nesterov=True, ns_steps=5)


@pytest.mark.parametrize("shape", [(16, 48), (48, 16), (24, 24)])
def test_muon_is_torchs_muon_on_matrices(shape: tuple[int, int]):
    """Where the settings agree: Nesterov, no decay, equal Newton-Schulz steps, weights not renormalised.

    torch averages the momentum buffer (lerp) where ours sums it: a constant factor, which orthogonalising
    takes out. What is left is bf16 rounding, which five steep steps raise from 0.4 % to about 4 %; another
    momentum, for comparison, differs by far more.
    """
    torch.manual_seed(1)
    start = torch.randn(shape)
    weights = [nn.Parameter(start.clone()) for _ in range(3)]
    optimizers = [
        Muon([weights[0]], lr=0.1, momentum=0.6, steps=5, keep_norm=False),
        their_muon(weights[1], momentum=0.6),
        their_muon(weights[2], momentum=0.3),
    ]
    for number in range(6):
        gradient, steps = torch.randn(shape), []
        for weight, optimizer in zip(weights, optimizers, strict=True):
            before = weight.detach().clone()
            weight.grad = gradient.clone()
            optimizer.step()
            steps.append(weight.detach() - before)
        ours, torchs, other = steps
        assert (ours - torchs).norm() < 0.06 * torchs.norm()
        assert number == 0 or (ours - other).norm() > 0.12 * torchs.norm()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_filter_is_stepped_as_the_matrix_of_its_rows(layout: torch.memory_format):
    torch.manual_seed(2)
    weights, gradients = torch.randn(8, 6, 3, 3), torch.randn(4, 8, 6, 3, 3)
    filters = nn.Parameter(weights.to(memory_format=layout))
    matrix = nn.Parameter(weights.reshape(8, 54))
    ours = [Muon([p], lr=0.1, momentum=0.6) for p in (filters, matrix)]
    for gradient in gradients:
        filters.grad, matrix.grad = gradient.to(memory_format=layout), gradient.reshape(8, 54)
        for optimizer in ours:
            optimizer.step()
    torch.testing.assert_close(filters.detach().reshape(8, 54), matrix.detach(), rtol=0, atol=1e-6)


def test_a_zero_gradient_moves_nothing_and_makes_no_nan():
    weight = nn.Parameter(torch.randn(4, 6))
    before = weight.detach().clone()
    weight.grad = torch.zeros(4, 6)
    Muon([weight], lr=0.1, momentum=0.6, keep_norm=False).step()
    assert torch.equal(weight.detach(), before)


def test_muons_decay_is_torchs_and_none_where_the_norm_is_kept():
    start = torch.randn(4, 6, generator=torch.Generator().manual_seed(8))
    start *= 2 / start.norm()
    ours, torchs, normed = (nn.Parameter(start.clone()) for _ in range(3))
    for weight, optimizer in (
        (ours, Muon([ours], lr=0.1, momentum=0.6, keep_norm=False, weight_decay=0.5)),
        (torchs, torch.optim.Muon([torchs], lr=0.1, momentum=0.6, weight_decay=0.5)),
        (normed, Muon([normed], lr=0.1, momentum=0.6, weight_decay=0.5)),
    ):
        weight.grad = torch.zeros(4, 6)
        optimizer.step()
    assert torch.equal(ours, torchs)
    torch.testing.assert_close(ours.detach(), 0.95 * start)
    torch.testing.assert_close(normed.detach(), start)


def test_muons_momentum_is_nesterovs_by_hand():
    torch.manual_seed(5)
    weight = nn.Parameter(torch.randn(4, 6))
    expected, buffer = weight.detach().clone(), torch.zeros(4, 6)
    muon = Muon([weight], lr=0.1, momentum=0.6, keep_norm=False)
    for gradient in torch.randn(5, 4, 6):
        weight.grad = gradient.clone()
        muon.step()
        buffer = 0.6 * buffer + gradient
        expected -= 0.1 * orthogonalised(gradient + 0.6 * buffer)
        torch.testing.assert_close(muon.state[weight]["momentum_buffer"], buffer)
        torch.testing.assert_close(weight.detach(), expected)


def test_muon_keeps_each_weight_at_the_norm_of_its_number_of_filters():
    torch.manual_seed(6)
    weight = nn.Parameter(torch.randn(9, 4, 3, 3) * 7)
    weight.grad = torch.randn(9, 4, 3, 3)
    direction = weight.detach() / weight.detach().norm()
    Muon([weight], lr=0.0, momentum=0.6).step()
    torch.testing.assert_close(weight.detach(), 3 * direction)


def test_muon_leaves_a_parameter_without_gradient_alone():
    weight = nn.Parameter(torch.randn(4, 6))
    before = weight.detach().clone()
    muon = Muon([weight], lr=0.1, momentum=0.6)
    muon.step()
    assert torch.equal(weight.detach(), before)
    assert not muon.state
