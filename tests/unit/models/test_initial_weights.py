"""xavier, dirac and the whitened first layer."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from distcifar.config import ModelConfig
from distcifar.models import build_model, initialise_from_data
from distcifar.models.initial import identity_filters
from distcifar.models.whitened import whitening_filters

WHITENED = ModelConfig(name="whitened", widths=(8, 12), init="dirac")


def build(seed=0, **fields):
    torch.manual_seed(seed)
    return build_model(ModelConfig(**fields), channels=3, size=32, num_classes=10)


def smooth_images(num, channels, seed=0):
    """Images whose neighbouring pixels and channels are correlated, as in photographs."""
    noise = torch.randn(num, channels, 34, 34, generator=torch.Generator().manual_seed(seed))
    smooth = nn.functional.avg_pool2d(noise, 3, stride=1)
    return 5 * (smooth + 0.5 * smooth.mean(dim=1, keepdim=True)) + 0.3


@given(inputs=st.integers(1, 6), outputs=st.integers(1, 9), kernel=st.sampled_from([1, 3, 5]), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_identity_filters_hand_their_channels_on(inputs, outputs, kernel, seed):
    torch.manual_seed(seed)
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    before = conv.weight.detach().clone()
    identity_filters(conv.weight)
    same = min(inputs, outputs)
    images = torch.randn(2, inputs, 7, 7)
    torch.testing.assert_close(conv(images)[:, :same], images[:, :same])
    assert torch.equal(conv.weight[same:], before[same:])


def test_even_kernels_have_no_identity():
    weight = torch.randn(4, 4, 2, 2)
    before = weight.clone()
    identity_filters(weight)
    assert torch.equal(weight, before)


def test_dirac_reaches_the_convolutions_of_a_net():
    model = build(name="cnn", layout=("8", "M"), init="dirac")
    images = torch.randn(2, 3, 32, 32)
    conv = model.body[0]
    expected = images + conv.bias[:3, None, None]
    torch.testing.assert_close(conv(images)[:, :3], expected)


def test_xavier_is_uniform_within_its_bound_and_biases_are_zero():
    model = build(name="cnn", layout=("16", "M"), hidden=(64,), init="xavier")
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert len(layers) == 3
    for layer in layers:
        bound = (6 / (layer.weight[0].numel() + layer.weight[:, 0].numel())) ** 0.5
        assert 0.95 * bound < layer.weight.abs().max() <= bound
        assert abs(layer.weight.std() / (bound / 3**0.5) - 1) < 0.1
        assert torch.equal(layer.bias, torch.zeros_like(layer.bias))


def test_frozen_filters_keep_their_weights_under_every_init():
    default = build(name="whitened", widths=(8,)).body[0].weight
    for init in ("xavier", "dirac"):
        assert torch.equal(build(name="whitened", widths=(8,), init=init).body[0].weight, default)


@pytest.mark.parametrize("channels", [1, 3])
def test_whitened_patches_have_identity_covariance(channels):
    images = smooth_images(500, channels)
    outputs = nn.functional.conv2d(images, whitening_filters(images))  # [N, 4C, 31, 31]
    covariance = outputs.transpose(0, 1).flatten(1).cov()
    torch.testing.assert_close(covariance, torch.eye(4 * channels), atol=0.02, rtol=0)
    raw = images.unfold(2, 2, 1).unfold(3, 2, 1).permute(1, 4, 5, 0, 2, 3).reshape(4 * channels, -1).cov()
    assert (raw - torch.diag(raw.diag())).abs().max() > 0.5  # there was something to remove


def test_whitened_layer_holds_both_signs_and_only_its_bias_learns():
    model = build_model(WHITENED, channels=3, size=32, num_classes=10)
    initialise_from_data(model, smooth_images(50, 3))
    first = model.body[0]
    assert first.weight.shape == (24, 3, 2, 2)
    assert torch.equal(first.weight[:12], -first.weight[12:])
    assert torch.equal(first.weight[:12], whitening_filters(smooth_images(50, 3)))
    assert not first.weight.requires_grad
    assert first.bias.requires_grad


def test_whitening_is_a_function_of_the_images():
    assert torch.equal(whitening_filters(smooth_images(50, 3)), whitening_filters(smooth_images(50, 3)))
    assert not torch.equal(whitening_filters(smooth_images(50, 3)), whitening_filters(smooth_images(50, 3, seed=1)))


def test_whitening_survives_constant_images():
    assert whitening_filters(torch.full((4, 3, 8, 8), 0.5)).isfinite().all()


def test_whitened_net_starts_with_small_logits():
    model = build_model(WHITENED, channels=3, size=32, num_classes=10)
    images = smooth_images(64, 3)
    initialise_from_data(model, images)
    assert model(images).abs().max() < 2


def test_other_nets_do_not_look_at_the_data():
    model = build(name="resnet", widths=(4,), blocks=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    initialise_from_data(model, smooth_images(8, 3))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
