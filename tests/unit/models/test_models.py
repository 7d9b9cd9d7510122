"""What holds for every family: shapes, head, seeds, parameter counts, refusals."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from distcifar.config import ModelConfig
from distcifar.errors import ConfigError
from distcifar.models import FAMILIES, build_model, count_parameters, frozen_norms
from distcifar.models.cnn import least_size

CONFIGS = {
    "linear": ModelConfig(name="linear"),
    "mlp": ModelConfig(name="mlp", hidden=(20, 12, 8), dropout=0.2),
    "cnn": ModelConfig(name="cnn", layout=("4", "M", "8", "M"), hidden=(16,), dropout=0.5),
    "cnn-k5": ModelConfig(name="cnn", layout=("4", "M", "8", "M"), kernel=5, padding=0, batchnorm=False),
    "resnet": ModelConfig(name="resnet", widths=(4, 8), blocks=2),
    "resnet-pool": ModelConfig(name="resnet", widths=(4, 8, 16), blocks=1, stem_pool=True),
    "whitened": ModelConfig(name="whitened", widths=(8, 12, 16)),
}
BIG = ("resnet-d2l", "torchvision-resnet18", "torchvision-vgg13_bn")  # tried without numbers, for speed


def test_every_family_is_tried_here():
    assert {*BIG, *(config.name for config in CONFIGS.values())} == set(FAMILIES)


@pytest.mark.parametrize(("channels", "size", "num_classes"), [(1, 28, 10), (3, 32, 7), (3, 64, 101)])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_logits_and_gradients(config, channels, size, num_classes):
    model = build_model(config, channels=channels, size=size, num_classes=num_classes)
    logits = model(torch.randn(2, channels, size, size))
    assert logits.shape == (2, num_classes)
    assert logits.dtype == torch.float32
    logits.square().sum().backward()
    learning = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learning)


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("name", BIG)
def test_shapes_of_big_nets(name, size):
    with torch.device("meta"):
        model = build_model(ModelConfig(name=name), channels=3, size=size, num_classes=7)
        assert model(torch.empty(2, 3, size, size)).shape == (2, 7)


def test_maps_of_resnet_d2l_follow_the_code_of_the_note():
    with torch.device("meta"):
        model = build_model(ModelConfig(name="resnet-d2l"), channels=3, size=32, num_classes=10)
        maps = torch.empty(2, 3, 32, 32)
        sides = [maps.shape[-1] for layer in (*model.body[0], *model.body[1:5]) if (maps := layer(maps)).ndim]
        assert model.eval()(torch.empty(2, 3, 28, 28)).shape == (2, 10)
    assert model.body[0][2].kernel_size == 2  # a pool of 3, as in the note's theory part, gives 8 pixels as well
    assert sides == [15, 15, 8, 8, 8, 4, 2, 1]  # conv bn pool relu, four stages


@pytest.mark.parametrize("layout", [("4", "M", "6", "M"), ("M", "4", "M", "M"), ("4", "4", "M")])
def test_pools_before_relu_change_neither_logits_nor_gradients(layout):
    """The users' order, conv bn relu pool, of the same layers; small whole numbers, so that maxima are often ties."""
    model = build_model(ModelConfig(name="cnn", layout=layout, hidden=(5,)), channels=3, size=16, num_classes=3).eval()
    order = list(model.body)
    for place in range(1, len(order)):
        for at in range(place, 0, -1):  # each ReLU moves before the pools that are in front of it
            if isinstance(order[at], torch.nn.ReLU) and isinstance(order[at - 1], torch.nn.MaxPool2d):
                order[at - 1], order[at] = order[at], order[at - 1]
    theirs = torch.nn.Sequential(*order, model.head)
    assert [*theirs][:-1] != [*model.body]
    for parameter in model.parameters():
        parameter.data.copy_(torch.randint(-1, 2, parameter.shape))
    images = torch.randint(-2, 3, (4, 3, 16, 16)).float()
    found = []
    for net in (model, theirs):
        images.requires_grad_().grad = None
        logits = net(images)
        logits.square().sum().backward()
        found.append((logits, images.grad))
    assert found[0][1].any()
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_head_is_the_last_layer_alone(config):
    model = build_model(config, channels=3, size=32, num_classes=7)
    assert isinstance(model.head, torch.nn.Linear)
    assert model.head.out_features == 7
    features = model.body(torch.randn(2, 3, 32, 32))
    assert features.shape == (2, model.head.in_features)
    assert len(list(model.parameters())) == len(set(model.state_dict()) & {n for n, _ in model.named_parameters()})


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_weights_are_a_function_of_the_seed(config):
    def weights(seed):
        torch.manual_seed(seed)
        model = build_model(config, channels=3, size=32, num_classes=10)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_parameters_of_small_nets_counted_by_hand():
    def count(config, channels=3, size=32):
        return count_parameters(build_model(config, channels=channels, size=size, num_classes=10))

    assert count(CONFIGS["mlp"]) == (3072 * 20 + 20 + 20 * 12 + 12 + 12 * 8 + 8 + 8 * 10 + 10,) * 2
    conv_bn = (1 * 4 * 9 + 4 + 8) + (4 * 8 * 9 + 8 + 16)
    assert count(CONFIGS["cnn"], 1, 28) == (conv_bn + 8 * 7 * 7 * 16 + 16 + 16 * 10 + 10,) * 2
    all_, learn = count(CONFIGS["whitened"])
    assert all_ - learn == 24 * 12 + 2 * (8 + 12 + 16)  # whitening filters and BatchNorm scales


def test_dropout_of_mlp_is_after_the_first_two_layers_only():
    model = build_model(CONFIGS["mlp"], channels=3, size=32, num_classes=10)
    kinds = [type(layer).__name__ for layer in model.body]
    assert kinds == ["Flatten", "Linear", "ReLU", "Dropout", "Linear", "ReLU", "Dropout", "Linear", "ReLU"]
    assert [layer.p for layer in model.body if isinstance(layer, torch.nn.Dropout)] == [0.2, 0.2]


@given(
    layout=st.lists(st.sampled_from(["2", "3", "M"]), min_size=1, max_size=6),
    kernel=st.integers(1, 5),
    padding=st.integers(0, 2),
)
@settings(deadline=None, max_examples=25)
def test_cnn_takes_exactly_the_sizes_that_leave_a_map(layout, kernel, padding):
    config = ModelConfig(name="cnn", layout=tuple(layout), kernel=kernel, padding=padding, batchnorm=False)

    least = least_size(config)
    with torch.device("meta"):
        for size in range(least, least + 4):
            model = build_model(config, channels=1, size=size, num_classes=3)
            assert model(torch.empty(2, 1, size, size)).shape == (2, 3)
        if least > 1:  # where we refuse, torch would fail as well: the bound is the tightest one
            with pytest.raises(ConfigError):
                build_model(config, channels=1, size=least - 1, num_classes=3)
            with pytest.raises(RuntimeError):
                model.body[:-1](torch.empty(2, 1, least - 1, least - 1))


@pytest.mark.parametrize(
    ("config", "size"),
    [
        (CONFIGS["cnn-k5"], 15),
        (CONFIGS["whitened"], 8),
        (ModelConfig(name="resnet-d2l"), 2),
        (ModelConfig(name="torchvision-vgg13_bn"), 28),
    ],
    ids=str,
)
def test_small_images_are_refused_with_value_rule_and_remedy(config, size):
    with pytest.raises(ConfigError, match=rf"{size}x{size} .* at least \d+x\d+.*--augment.resize"):
        build_model(config, channels=3, size=size, num_classes=10)


@pytest.mark.parametrize("fields", [{"pretrained": True}, {"weights": "some.pth"}])
def test_pretrained_weights_of_our_own_nets_are_refused(fields):
    with pytest.raises(ConfigError, match="torchvision"):
        build_model(ModelConfig(name="resnet", **fields), channels=3, size=32, num_classes=10)


def test_nothing_is_frozen_in_our_own_nets():
    for config in CONFIGS.values():
        model = build_model(config, channels=3, size=32, num_classes=10)
        assert frozen_norms(model, config) == []
