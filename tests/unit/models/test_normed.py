"""Pool, BatchNorm and GELU as one operation, against torch's three in double precision."""

import copy

import numba
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from distcifar.config import ModelConfig
from distcifar.models import build_model, norm_kernel, normed
from distcifar.models.normed import NormedSequential, fits, norm_and_gelu

STEP = 2.0**-7  # between neighbouring bf16 numbers, relative: a value rounded once is at most half of it off


def norm_layer(channels: int, *, momentum: float = 0.4) -> nn.BatchNorm2d:
    """With tensors that are neither 0 nor 1, and a scale that does not learn."""
    norm = nn.BatchNorm2d(channels, momentum=momentum)
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            assert tensor is not None
            tensor.copy_(0.5 + torch.rand(channels))
    norm.weight.requires_grad = False
    return norm


def written_out(maps: Tensor, norm: nn.BatchNorm2d, *, pools: bool) -> Tensor:
    return F.gelu(norm(F.max_pool2d(maps, 2) if pools else maps))


def bf16_maps(*shape: int, mean: float = 0.7) -> Tensor:
    return (torch.randn(*shape) * 1.5 + mean).bfloat16().to(memory_format=torch.channels_last)


def assert_near(found: Tensor, expected: Tensor, *, steps: float = 1.0) -> None:
    """Within `steps` of bf16 of the value, or of a hundredth of the typical value."""
    typical = expected.abs().mean().item()
    torch.testing.assert_close(found.double(), expected, rtol=steps * STEP, atol=steps * STEP * 0.5 * typical + 1e-6)


@given(
    images=st.integers(1, 5), channels=st.integers(1, 40), height=st.integers(1, 5), width=st.integers(1, 5),
    pools=st.booleans(), mean=st.sampled_from([0.0, 3.0, -100.0]), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_it_is_torchs_pool_norm_and_gelu(
    images: int, channels: int, height: int, width: int, pools: bool, mean: float, seed: int
):
    if images * height * width < 2:
        images = 2
    torch.manual_seed(seed)
    side = 2 if pools else 1
    ours = norm_layer(channels)
    theirs = copy.deepcopy(ours).double()
    maps = bf16_maps(images, channels, side * height, side * width, mean=mean).requires_grad_()
    exact = maps.detach().double().requires_grad_()
    made, expected = norm_and_gelu(maps, ours, pools=pools), written_out(exact, theirs, pools=pools)
    assert made.dtype == torch.bfloat16
    assert made.is_contiguous(memory_format=torch.channels_last)
    assert_near(made, expected.detach())
    gradient = torch.randn(made.shape).bfloat16()
    made.backward(gradient)
    expected.backward(gradient.double())
    assert maps.grad is not None
    assert exact.grad is not None
    # A gradient is a small difference of what is rounded where a channel has few values: measured by the norm.
    assert (maps.grad.double() - exact.grad).norm() <= 2 * STEP * gradient.double().norm() * sizes(theirs, exact, pools)
    torch.testing.assert_close(ours.bias.grad, theirs.bias.grad.float(), rtol=STEP, atol=STEP * gradient.numel() ** 0.5)
    for mine, their in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(mine.double(), their.double(), rtol=1e-5, atol=1e-5)


def sizes(norm: nn.BatchNorm2d, maps: Tensor, pools: bool) -> float:
    """The largest factor by which this norm enlarges a gradient: its scale over the batch's deviation."""
    values = F.max_pool2d(maps.detach(), 2) if pools else maps.detach()
    deviation = (values.var((0, 2, 3), unbiased=False) + norm.eps).sqrt()
    return float((norm.weight / deviation).max())


def test_of_equal_values_the_first_is_the_maximum_as_in_torch():
    torch.manual_seed(0)
    maps = torch.randint(0, 3, (4, 8, 6, 6)).bfloat16().to(memory_format=torch.channels_last)
    ours, theirs = (maps.to(kind).clone().requires_grad_() for kind in (torch.bfloat16, torch.float64))
    norm = norm_layer(8)
    norm_and_gelu(ours, norm, pools=True).float().square().sum().backward()
    written_out(theirs, copy.deepcopy(norm).double(), pools=True).square().sum().backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.equal(ours.grad != 0, theirs.grad != 0)


def test_gelu_of_every_bf16_number():
    bits = np.arange(2**16, dtype=np.uint16)
    numbers = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).double()
    finite = numbers.abs() < 1e30  # z * z of what is larger is no float
    kept = bits[finite.numpy()].reshape(1, 1, -1)
    one, nothing, out = (np.full(kept.shape[2], value, np.float32) for value in (1, 0, 0))
    made = np.empty_like(kept)
    norm_kernel.activate(kept, one, nothing, made)
    found = torch.from_numpy(made.reshape(-1).view(np.int16)).view(torch.bfloat16).double()
    torch.testing.assert_close(found, F.gelu(numbers[finite]), rtol=STEP / 2 + 1e-5, atol=4e-7)
    # Its slope, for a gradient of 1
    ones = np.full_like(kept, 0x3F80)
    norm_kernel.activation_gradient(kept, one, nothing, ones, made, np.zeros((1, 2, len(out)), np.float32))
    z = numbers[finite].clone().requires_grad_()
    F.gelu(z).sum().backward()
    found = torch.from_numpy(made.reshape(-1).view(np.int16)).view(torch.bfloat16).double()
    torch.testing.assert_close(found, z.grad, rtol=STEP / 2 + 1e-5, atol=4e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("pools", [False, True])
def test_a_diverging_run_is_seen(bad: float, place: tuple[int, int], pools: bool):
    maps = bf16_maps(3, 4, 4, 4)
    maps[1, 2, place[0], place[1]] = bad
    maps.requires_grad_()
    made = norm_and_gelu(maps, norm_layer(4), pools=pools)
    lost = not pools or bad != -float("inf")  # the pool drops the lowest
    assert made[:, 2].isnan().all().item() == lost
    assert made[:, [0, 1, 3]].isfinite().all()
    made.sum().backward()
    assert maps.grad is not None
    assert maps.grad[:, 2].isnan().any().item() == lost


def test_the_number_of_threads_changes_no_bit():
    if numba.config.NUMBA_NUM_THREADS < 2:  # type: ignore[attr-defined]
        pytest.skip("one core only")
    before, found = numba.get_num_threads(), []
    try:
        for threads in (1, 2):
            numba.set_num_threads(threads)
            torch.manual_seed(1)
            norm, maps = norm_layer(24), bf16_maps(37, 24, 10, 6).requires_grad_()
            norm_and_gelu(maps, norm, pools=True).float().square().sum().backward()
            assert maps.grad is not None
            assert norm.bias.grad is not None
            found.append([maps.grad, norm.bias.grad, *norm.buffers()])
    finally:
        numba.set_num_threads(before)
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two)


def chain(kind: type[nn.Sequential], channels: int) -> nn.Sequential:
    torch.manual_seed(5)
    first = nn.Conv2d(3, channels, 3, padding=1, bias=False)
    layers = (nn.MaxPool2d(2), norm_layer(channels), nn.GELU(), first, norm_layer(3), nn.GELU(), nn.MaxPool2d(2))
    conv = nn.Conv2d(channels, 3, 3, padding=1, bias=False)
    return kind(first, *layers[:3], conv, *layers[4:])


@pytest.mark.parametrize("case", ["fp32", "evaluation", "no gradient", "scale learns", "odd"])
def test_where_it_does_not_fit_the_chain_is_torchs_bit_by_bit(case: str):
    chains = [chain(kind, 8) for kind in (nn.Sequential, NormedSequential)]
    assert list(chains[0].state_dict()) == list(chains[1].state_dict())  # checkpoints are the same
    images, results = torch.randn(6, 3, 7 if case == "odd" else 8, 8), []
    for net in chains:
        net.train(case != "evaluation")
        for layer in net.modules():
            if isinstance(layer, nn.BatchNorm2d) and (case == "scale learns" or case == "odd"):
                layer.weight.requires_grad = True
        with (
            torch.set_grad_enabled(case != "no gradient"),
            torch.autocast("cpu", torch.bfloat16, enabled=case != "fp32"),
        ):
            results.append(net(images))
    assert torch.equal(*results)


def test_odd_sides_cannot_be_pooled_in_it():
    norm = norm_layer(4)
    assert fits(bf16_maps(2, 4, 6, 6), norm, pools=True)
    assert not fits(bf16_maps(2, 4, 7, 6), norm, pools=True)
    assert not fits(bf16_maps(2, 4, 6, 7), norm, pools=True)
    assert fits(bf16_maps(2, 4, 7, 7), norm, pools=False)


def test_one_value_for_a_channel_is_refused_as_torch_does():
    norm = norm_layer(4)
    for attempt in (lambda maps: norm(maps), lambda maps: norm_and_gelu(maps, norm, pools=False)):
        with pytest.raises(ValueError, match=r"Expected more than 1 value per channel when training"):
            attempt(bf16_maps(1, 4, 1, 1))


def test_nets_gradients_are_as_exact_as_with_torchs_operations(monkeypatch: pytest.MonkeyPatch):
    """In the sum over some nets: which of two like values is a map's maximum may fall either way in one of them."""
    used: list[bool] = []
    monkeypatch.setattr(normed, "norm_and_gelu", lambda *a, **k: used.append(True) or norm_and_gelu(*a, **k))
    ours = torchs = 0.0
    for seed in range(12):
        torch.manual_seed(seed)
        config = ModelConfig(name="whitened", widths=(8, 16), blocks=1 + seed % 3, init="dirac")
        images, labels = torch.randn(32, 3, 16, 16), torch.randint(0, 4, (32,))
        start = build_model(config, channels=3, size=16, num_classes=4).to(memory_format=torch.channels_last)
        exact = gradient(copy.deepcopy(start).double(), images.double(), labels, bf16=False)
        with monkeypatch.context() as patch:
            ours += float((gradient(start, images, labels, bf16=True) - exact).norm())
            calls = len(used)
            patch.setattr(normed, "fits", lambda *a, **k: False)
            torchs += float((gradient(start, images, labels, bf16=True) - exact).norm())
        assert len(used) == calls > 0, "the one is measured against itself"
    assert ours <= 1.25 * torchs


def gradient(net: nn.Module, images: Tensor, labels: Tensor, *, bf16: bool) -> Tensor:
    """Of the mean loss, all weights' in one: float64."""
    net = copy.deepcopy(net)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = net(images)
    F.cross_entropy(logits.float() if bf16 else logits, labels).backward()
    return torch.cat([p.grad.double().flatten() for p in net.parameters() if p.grad is not None])
