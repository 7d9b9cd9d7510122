"""Fine-tuning: weights from a file or the network, frozen bodies, and messages that name both ways."""

from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from torchvision import models as torchvision_models

from distcifar.config import ModelConfig
from distcifar.errors import ConfigError, DataError
from distcifar.models import build_model, count_parameters, frozen_norms

RESNET = "torchvision-resnet18"
VGG = "torchvision-vgg13_bn"


@pytest.fixture(scope="module")
def official():
    """Stands for torchvision's ImageNet weights: those of an untrained net, with recognisable statistics."""
    torch.manual_seed(7)
    state = torchvision_models.resnet18().state_dict()
    state["bn1.running_mean"].fill_(0.25)
    return state


@pytest.fixture
def no_network(monkeypatch):
    def fail(url, **options):
        raise URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fail)


def build(name=RESNET, channels=3, num_classes=7, **fields):
    config = ModelConfig(name=name, pretrained=True, **fields)
    return build_model(config, channels=channels, size=32, num_classes=num_classes)


@pytest.fixture
def meta_download(monkeypatch):
    """Downloads that have the right names and shapes, and no numbers; builds nets without memory."""
    builders = {"resnet18": torchvision_models.resnet18, "vgg13_bn": torchvision_models.vgg13_bn}
    asked = []

    def download(url, **options):
        asked.append((url, options))
        return next(build for name, build in builders.items() if name in url)().state_dict()

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", download)
    with torch.device("meta"):
        yield asked


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.usefixtures("no_network")
def test_weights_from_a_local_file(official, tmp_path, suffix):
    file = tmp_path / f"weights{suffix}"
    save = torch.save if suffix == ".pth" else save_file
    save(official, file)
    model = build(weights=str(file), init="dirac")  # init is for untrained nets
    loaded = model.body.state_dict()
    assert set(official) - set(loaded) == {"fc.weight", "fc.bias"}
    assert all(torch.equal(value, official[name]) for name, value in loaded.items())
    assert model.head.out_features == 7
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 7)


def test_the_download_is_checked_and_runs_no_code(meta_download):
    build()
    ((url, options),) = meta_download
    assert url.startswith("https://download.pytorch.org/models/resnet18-")
    assert options["check_hash"]
    assert options["weights_only"]


def message_of(**fields):
    with pytest.raises(DataError) as caught:
        build(**fields)
    return str(caught.value)


@pytest.mark.usefixtures("no_network")
def test_no_network_names_both_ways():
    message = message_of()
    assert "https://download.pytorch.org/models/resnet18-" in message
    assert "Name or service not known" in message
    assert "--model.weights FILE" in message


@pytest.mark.parametrize("name", ["missing.pth", "missing.safetensors"])
def test_missing_file(tmp_path, name):
    message = message_of(weights=str(tmp_path / name))
    assert name in message
    assert "--model.weights FILE" in message
    assert "https://download.pytorch.org/models/resnet18-" in message


@pytest.mark.parametrize("name", ["bad.pth", "bad.safetensors"])
@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"\x80\x02]q\x00(K\x01K\x02e.", b"PK\x03\x04 cut"])
def test_damaged_file(tmp_path, name, content):
    file = tmp_path / name
    file.write_bytes(content)
    assert name in message_of(weights=str(file))


def test_a_file_that_would_run_code_is_refused(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"conv1.weight": Harmful()}, tmp_path / "evil.pth")
    assert "evil.pth" in message_of(weights=str(tmp_path / "evil.pth"))
    assert not (tmp_path / "ran").exists()


def test_files_of_other_nets_are_refused(official, tmp_path):
    def refused(state):
        torch.save(state, tmp_path / "other.pth")
        return message_of(weights=str(tmp_path / "other.pth"))

    assert "size mismatch" in refused(official | {"conv1.weight": torch.zeros(8, 3, 7, 7)})
    assert "1 tensors are missing" in refused({k: v for k, v in official.items() if k != "conv1.weight"})
    assert "1 are foreign" in refused(official | {"something.weight": torch.zeros(1)})
    assert "other.pth" in refused({"net": official})
    assert "other.pth" in refused([1, 2, 3])


def test_only_colour_images():
    with pytest.raises(ConfigError, match=r"1 channel.*--model.name resnet"):
        build(channels=1)


@pytest.mark.parametrize(
    ("name", "norms", "all_", "learning"),
    [(RESNET, 20, 11_181_642, 5_130), (VGG, 10, 128_997_706, 119_586_826)],
)
@pytest.mark.usefixtures("meta_download")
def test_frozen_bodies(name, norms, all_, learning):
    model = build(name=name, freeze=True, num_classes=10)
    assert count_parameters(model) == (all_, learning)
    assert not any(p.requires_grad for p in model.body.parameters())
    assert all(p.requires_grad for p in model.head.parameters())

    config = ModelConfig(name=name, pretrained=True, freeze=True, freeze_bn_stats=True)
    assert len(frozen_norms(model, config)) == norms
    assert frozen_norms(model, ModelConfig(name=name, pretrained=True, freeze=True)) == []
    assert frozen_norms(model, ModelConfig(name=name, pretrained=True, freeze_bn_stats=True)) == []


@pytest.mark.usefixtures("meta_download")
def test_head_of_vgg_is_its_whole_classifier():
    model = build(name=VGG)
    assert [layer.out_features for layer in model.head if isinstance(layer, torch.nn.Linear)] == [4096, 4096, 7]
    assert count_parameters(build(name=VGG, num_classes=10)) == (128_997_706, 128_997_706)


def test_frozen_norms_keep_their_statistics_in_training(official, tmp_path):
    torch.save(official, tmp_path / "weights.pth")
    config = ModelConfig(
        name=RESNET, pretrained=True, weights=str(tmp_path / "weights.pth"), freeze=True, freeze_bn_stats=True
    )
    model = build_model(config, channels=3, size=32, num_classes=10).train()
    for norm in frozen_norms(model, config):
        norm.eval()
    model(torch.randn(4, 3, 32, 32))
    assert all(torch.equal(value, official[name]) for name, value in model.body.state_dict().items())
