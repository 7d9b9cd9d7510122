"""3x3 convolutions by Winograd's method, against torch's: exactly on small whole numbers, closely on others."""

import copy

import numba
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from distcifar.config import ModelConfig
from distcifar.models import build_model, winograd
from distcifar.models.normed import NormedSequential
from distcifar.models.winograd import convolve, fits


def written_out(maps: Tensor, weight: Tensor, *, pools: bool) -> Tensor:
    results = F.conv2d(maps, weight, padding=1)
    return F.max_pool2d(results, 2) if pools else results


def both(
    maps: Tensor, weight: Tensor, *, pools: bool, part: int = 32, whole: bool = False
) -> tuple[list[Tensor], list[Tensor]]:
    """Result, gradient of the maps and of the weight: ours, and torch's in double."""
    found: list[list[Tensor]] = []
    for ours in (True, False):
        x = maps.detach().clone().requires_grad_() if ours else maps.detach().double().requires_grad_()
        w = weight.detach().clone().requires_grad_() if ours else weight.detach().double().requires_grad_()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(winograd, "PART", part)
            made = convolve(x, w, pools=pools) if ours else written_out(x, w, pools=pools)
            torch.manual_seed(3)
            gradient = torch.randint(-1, 2, made.shape).float() if whole else torch.randn(made.shape)
            made.backward(gradient.bfloat16().to(made.dtype))
        assert x.grad is not None
        assert w.grad is not None
        found.append([made.detach(), x.grad, w.grad])
    return found[0], found[1]


def off(found: Tensor, expected: Tensor) -> float:
    return float((found.detach().double() - expected.detach()).norm() / expected.detach().norm())


@given(
    images=st.integers(1, 5), inputs=st.integers(1, 5), outputs=st.integers(1, 5), height=st.integers(1, 7),
    width=st.integers(1, 7), pools=st.booleans(), last=st.booleans(), seed=st.integers(0, 999),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_it_is_exact_on_small_whole_numbers(
    images: int, inputs: int, outputs: int, height: int, width: int, pools: bool, last: bool, seed: int
):
    """All that lies between stays below 256, where each whole number has its bf16. Equal maxima are frequent."""
    if pools:
        height, width = max(height, 2), max(width, 2)
    torch.manual_seed(seed)
    maps = torch.randint(-1, 2, (images, inputs, height, width)).bfloat16()
    weight = 4.0 * torch.randint(-1, 2, (outputs, inputs, 3, 3))
    if last:
        maps, weight = (t.to(memory_format=torch.channels_last) for t in (maps, weight))
    ours, torchs = both(maps, weight, pools=pools, part=2, whole=True)
    assert ours[0].dtype == ours[1].dtype == torch.bfloat16
    assert ours[2].dtype == torch.float32
    for mine, their in zip(ours, torchs, strict=True):
        assert torch.equal(mine.double(), their)


@pytest.mark.parametrize(("side", "inputs", "outputs"), [(7, 96, 64), (6, 32, 96), (15, 16, 33)])
def test_its_roundings_are_small(side: int, inputs: int, outputs: int):
    torch.manual_seed(side)
    maps = torch.randn(20, inputs, side, side).bfloat16()
    weight = torch.randn(outputs, inputs, 3, 3) / (9 * inputs) ** 0.5
    for mine, their in zip(*both(maps, weight, pools=False), strict=True):
        assert off(mine, their) < 0.006
    ours, torchs = both(maps, weight, pools=True)
    assert off(ours[0], torchs[0]) < 0.006
    for mine, their in zip(ours[1:], torchs[1:], strict=True):
        assert off(mine, their) < 0.2  # which of two like values is a maximum may fall either way


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("pools", [False, True])
def test_a_diverging_run_is_seen(bad: float, pools: bool):
    torch.manual_seed(0)
    maps, weight = torch.randn(3, 4, 6, 6).bfloat16(), torch.randn(5, 4, 3, 3, requires_grad=True)
    maps[1, 2, 3, 2] = bad
    maps.requires_grad_()
    made = convolve(maps, weight, pools=pools)
    assert not made[1].isfinite().all()
    assert made[[0, 2]].isfinite().all()
    made.sum().backward()
    assert weight.grad is not None
    assert not weight.grad.isfinite().all()


def test_the_number_of_threads_changes_no_bit():
    if numba.config.NUMBA_NUM_THREADS < 2:  # type: ignore[attr-defined]
        pytest.skip("one core only")
    before, found = numba.get_num_threads(), []
    try:
        for threads in (1, 2):
            numba.set_num_threads(threads)
            torch.set_num_threads(2)
            torch.manual_seed(1)
            maps, weight = torch.randn(21, 24, 9, 7).bfloat16(), torch.randn(17, 24, 3, 3)
            found.append(both(maps, weight, pools=True, part=8)[0])
    finally:
        numba.set_num_threads(before)
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two)


def test_what_needs_no_gradient_gets_none_and_keeps_nothing():
    torch.manual_seed(2)
    maps, weight = torch.randn(4, 3, 6, 6).bfloat16(), torch.randn(5, 3, 3, 3)
    expected = both(maps, weight, pools=False)[0]
    with_maps, with_weight = maps.clone().requires_grad_(), weight.clone().requires_grad_()
    torch.manual_seed(3)
    gradient = torch.randn(4, 5, 6, 6).bfloat16()
    convolve(with_maps, weight, pools=False).backward(gradient)
    made = convolve(maps, with_weight, pools=False)
    made.backward(gradient)
    assert with_maps.grad is not None
    assert with_weight.grad is not None
    assert torch.equal(with_maps.grad, expected[1])
    assert torch.equal(with_weight.grad, expected[2])
    frozen = convolve(with_maps, weight, pools=False)
    assert frozen.grad_fn is not None
    assert frozen.grad_fn.kept == []  # type: ignore[attr-defined]
    with torch.no_grad():
        assert convolve(with_maps, with_weight, pools=False).grad_fn is None


def layer(**changes: object) -> nn.Conv2d:
    settings = {"in_channels": 32, "out_channels": 96, "kernel_size": 3, "padding": 1, "bias": False} | changes
    return nn.Conv2d(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {"kernel_size": 5}, {"padding": 0}, {"stride": 2}, {"dilation": 2}, {"groups": 2}, {"bias": True},
        {"padding_mode": "circular"}, {"in_channels": 3}, {"out_channels": 32},
    ],
)  # fmt: skip
def test_only_plain_and_large_convolutions_are_done_so(changes: dict[str, object]):
    maps = torch.zeros(1, 32, 8, 8, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert fits(maps, layer())
        assert not fits(maps, layer(**changes))
        assert not fits(maps.float(), layer())
        assert not fits(maps[:, :, :3], layer())
        assert not fits(maps, nn.GELU())
    assert not fits(maps, layer()), "without autocast torch would refuse bf16 maps and fp32 weights"
    with torch.autocast("cpu", torch.float16):
        assert not fits(maps, layer())


def chain() -> NormedSequential:
    norm = nn.BatchNorm2d(96)
    return NormedSequential(layer(), nn.MaxPool2d(2), norm, nn.GELU(), layer(in_channels=96), nn.GELU())


@pytest.mark.parametrize("training", [True, False])
def test_a_chain_uses_it_in_training_and_in_evaluation(training: bool, monkeypatch: pytest.MonkeyPatch):
    used: list[bool] = []
    monkeypatch.setattr(winograd, "convolve", lambda *a, pools: used.append(pools) or convolve(*a, pools=pools))
    torch.manual_seed(4)
    net = chain().train(training)
    exact = copy.deepcopy(net).double()
    maps = torch.randn(6, 32, 9, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(training):
        made = net(maps)
    assert used == [True, False]
    assert off(made, nn.Sequential(*exact)(maps.double())) < 0.012
    used.clear()
    net(maps.float())
    assert used == []


def test_a_nets_gradients_are_nearly_as_exact(monkeypatch: pytest.MonkeyPatch):
    """In the sum over some nets: which of two like values is a map's maximum may fall either way in one of them."""
    ours = torchs = 0.0
    for seed in range(6):
        torch.manual_seed(seed)
        config = ModelConfig(name="whitened", widths=(32, 96), blocks=1 + seed % 3, init="dirac")
        images, labels = torch.randn(32, 3, 20, 20), torch.randint(0, 4, (32,))
        start = build_model(config, channels=3, size=20, num_classes=4).to(memory_format=torch.channels_last)
        exact = gradient(copy.deepcopy(start).double(), images.double(), labels, bf16=False)
        ours += float((gradient(start, images, labels, bf16=True) - exact).norm())
        with monkeypatch.context() as patch:
            patch.setattr(winograd, "fits", lambda *a: False)
            torchs += float((gradient(start, images, labels, bf16=True) - exact).norm())
    assert ours != torchs, "the one is measured against itself"
    assert ours <= 1.5 * torchs


def gradient(net: nn.Module, images: Tensor, labels: Tensor, *, bf16: bool) -> Tensor:
    """Of the mean loss, all weights' in one: float64."""
    net = copy.deepcopy(net)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = net(images)
    F.cross_entropy(logits.float() if bf16 else logits, labels).backward()
    return torch.cat([p.grad.double().flatten() for p in net.parameters() if p.grad is not None])
