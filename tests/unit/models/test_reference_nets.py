"""Our nets compute what the users' hand-written ones compute."""

import importlib.util
from pathlib import Path

import pytest
import torch

from distcifar.models import build_model
from distcifar.recipes import RECIPES

PATH = Path(__file__).parents[2] / "parity" / "reference_nets.py"


def load_reference_nets():
    spec = importlib.util.spec_from_file_location("reference_nets", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.REFERENCE


REFERENCE = load_reference_nets()


@pytest.fixture(params=REFERENCE)
def pair(request):
    """Our net and the reference with the same parameters and, after one training batch, the same statistics."""
    torch.manual_seed(0)
    reference = REFERENCE[request.param]()
    reference.train()(torch.randn(16, 3, 32, 32))
    ours = build_model(RECIPES[request.param].model, channels=3, size=32, num_classes=10)
    with torch.no_grad():
        for to, source in zip(ours.parameters(), reference.parameters(), strict=True):
            assert to.shape == source.shape
            to.copy_(source)
        for to, source in zip(ours.buffers(), reference.buffers(), strict=True):
            assert to.shape == source.shape
            to.copy_(source)
    return ours, reference


def test_same_logits_in_evaluation(pair):
    ours, reference = (net.eval() for net in pair)
    images = torch.randn(8, 3, 32, 32)
    torch.testing.assert_close(ours(images), reference(images), atol=1e-6, rtol=1e-6)


def test_same_logits_and_dropout_in_training(pair):
    ours, reference = (net.train() for net in pair)
    images = torch.randn(8, 3, 32, 32)
    torch.manual_seed(1)
    expected = reference(images)
    torch.manual_seed(1)
    torch.testing.assert_close(ours(images), expected, atol=1e-6, rtol=1e-6)
