"""3x3 convolutions by Winograd's method, against torch's in double precision."""

import copy
from typing import Any

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


def run(
    maps: Tensor, weight: Tensor, *, pools: bool = False, part: int = 1024, gradient: Tensor | None = None
) -> tuple[list[Tensor], Any]:
    """Result, gradient of the maps, gradient of the weight; and what was kept for them."""
    x, w = maps.detach().clone().requires_grad_(), weight.detach().clone().requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "PART", part)
        made = convolve(x, w, pools=pools)
        made.backward(gradient_for(made) if gradient is None else gradient)
    assert x.grad is not None
    assert w.grad is not None
    assert made.is_contiguous(memory_format=torch.channels_last)
    return [made.detach(), x.grad, w.grad], made.grad_fn


def gradient_for(made: Tensor) -> Tensor:
    return torch.randn(made.shape, generator=torch.Generator().manual_seed(3)).bfloat16().to(made.dtype)


def in_double(maps: Tensor, weight: Tensor) -> list[Tensor]:
    x, w = maps.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    made = F.conv2d(x, w, padding=1)
    made.backward(gradient_for(made))
    assert x.grad is not None
    assert w.grad is not None
    return [made.detach(), x.grad, w.grad]


def size(values: Tensor) -> float:
    return float(values.detach().double().square().mean().sqrt())


def off(found: Tensor, expected: Tensor) -> float:
    return size(found.double() - expected) / size(expected)


@given(
    images=st.integers(1, 5), inputs=st.integers(1, 40), outputs=st.integers(1, 40), height=st.integers(1, 14),
    width=st.integers(1, 14), last=st.booleans(), seed=st.integers(0, 999),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_it_is_torchs_convolution(
    images: int, inputs: int, outputs: int, height: int, width: int, last: bool, seed: int
):
    torch.manual_seed(seed)
    maps, weight = torch.randn(images, inputs, height, width).bfloat16(), torch.randn(outputs, inputs, 3, 3)
    if last:
        maps, weight = (t.to(memory_format=torch.channels_last) for t in (maps, weight))
    ours, _ = run(maps, weight, part=20)
    expected = in_double(maps, weight)
    assert ours[0].dtype == ours[1].dtype == torch.bfloat16
    assert ours[2].dtype == torch.float32
    given = gradient_for(ours[0])
    # The sizes that independent numbers would have: in a corner of a small map much of a tile adds up to nothing.
    sizes = [
        size(maps) * size(weight) * (9 * inputs) ** 0.5,
        size(given) * size(weight) * (9 * outputs) ** 0.5,
        size(given) * size(maps) * (images * height * width) ** 0.5,
    ]
    for mine, their, scale in zip(ours, expected, sizes, strict=True):
        assert size(mine.double() - their) < 0.04 * scale


@given(
    images=st.integers(1, 5), outputs=st.integers(1, 20), height=st.integers(2, 13), width=st.integers(2, 13),
    seed=st.integers(0, 999),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_its_pool_is_torchs(images: int, outputs: int, height: int, width: int, seed: int):
    torch.manual_seed(seed)
    maps, weight = torch.randn(images, 3, height, width).bfloat16(), torch.randn(outputs, 3, 3, 3)
    pooled, record = run(maps, weight, pools=True, part=20)
    (results, _, _), _ = run(maps, weight, part=20)
    assert torch.equal(pooled[0], F.max_pool2d(results, 2))
    # The gradient goes to where the maximum was taken from.
    high, wide = height // 2, width // 2
    places = torch.from_numpy(record.places).long().view(images, high, wide, outputs).permute(0, 3, 1, 2)
    given = torch.zeros_like(results)
    for place in range(4):
        window = (..., slice(place // 2, 2 * high, 2), slice(place % 2, 2 * wide, 2))
        assert torch.equal(results[window][places == place], pooled[0][places == place])
        given[window] = torch.where(places == place, gradient_for(pooled[0]), 0)
    unpooled, _ = run(maps, weight, part=20, gradient=given)
    assert off(pooled[1], unpooled[1].double()) < 0.005
    assert off(pooled[2], unpooled[2].double()) < 0.02, "an odd last row makes other parts, whose sums are rounded"


@pytest.mark.parametrize("pools", [False, True])
def test_no_images_are_no_error(pools: bool):
    """As with torch's: of none of a batch's images evaluation may be in doubt."""
    (made, for_maps, for_weight), _ = run(torch.zeros(0, 3, 8, 8).bfloat16(), torch.randn(5, 3, 3, 3), pools=pools)
    assert made.shape == ((0, 5, 4, 4) if pools else (0, 5, 8, 8))
    assert for_maps.shape == (0, 3, 8, 8)
    assert torch.equal(for_weight, torch.zeros(5, 3, 3, 3))


def test_of_equal_results_the_first_is_the_maximum():
    _, record = run(torch.zeros(2, 3, 8, 8).bfloat16(), torch.randn(5, 3, 3, 3), pools=True)
    assert not record.places.any()


@pytest.mark.parametrize(("side", "inputs", "outputs"), [(7, 96, 64), (6, 32, 96), (15, 16, 33)])
def test_its_roundings_are_small(side: int, inputs: int, outputs: int):
    torch.manual_seed(side)
    maps, weight = torch.randn(20, inputs, side, side).bfloat16(), torch.randn(outputs, inputs, 3, 3)
    ours, _ = run(maps, weight)
    for mine, their in zip(ours, in_double(maps, weight), strict=True):
        assert off(mine, their) < 0.017


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
            found.append(run(maps, weight, pools=True, part=8)[0])
    finally:
        numba.set_num_threads(before)
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two)


def test_what_needs_no_gradient_gets_none_and_keeps_nothing():
    torch.manual_seed(2)
    maps, weight = torch.randn(4, 3, 6, 6).bfloat16(), torch.randn(5, 3, 3, 3)
    expected, _ = run(maps, weight)
    with_maps, with_weight = maps.clone().requires_grad_(), weight.clone().requires_grad_()
    for made in (convolve(with_maps, weight, pools=False), convolve(maps, with_weight, pools=False)):
        made.backward(gradient_for(made))
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
        assert not fits(maps[:, :, :2], layer())
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
    assert off(made, nn.Sequential(*exact)(maps.double())) < 0.03
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
