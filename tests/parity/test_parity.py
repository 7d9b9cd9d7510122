"""The losses of the first steps equal those of an independent plain script, with hand-written nets.

Whoever doubts a recipe reads plain_training.py (160 lines of torch and numpy) and reference_nets.py: they import
nothing of distcifar. Twenty steps cross into the second epoch, by an uneven last batch.
"""

import ast
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from distcifar.data.loader import EvalLoader, Loaders, TrainLoader
from distcifar.data.pixels import PixelPipeline, normalisation
from distcifar.data.stores import ResidentStore
from distcifar.models import build_model
from distcifar.recipes import get_recipe
from distcifar.training.engine import fit
from distcifar.training.reports import StepReport
from distcifar.training.state import TrainState
from distcifar.world import World
from tests.parity import plain_training
from tests.parity.plain_training import TRAININGS, train
from tests.parity.reference_nets import REFERENCE

STEPS = 20
# True batch sizes are 64; these nets would take more than ten seconds with them.
SMALLER_BATCH = {"resnet9-aug": 16, "cnn3": 32, "cnn1": 32}
CIFAR10 = Path(__file__).parents[3] / "shared" / "data" / "cifar10.npz"
ONE = World()


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """On busy cores, threads wait for each other longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_images(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.Generator(np.random.Philox(key=7))
    return rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), rng.integers(0, 10, count)


@pytest.fixture(scope="module")
def images() -> tuple[np.ndarray, np.ndarray]:
    """2,000 images of CIFAR-10, or as many random ones where it is not there."""
    if not CIFAR10.exists():
        return random_images(2000)
    with np.load(CIFAR10) as file:
        return file["train_x"][:2000], file["train_y"][:2000].astype(np.int64)


def our_losses(
    name: str, batch_size: int, images: np.ndarray, labels: np.ndarray
) -> tuple[list[float], list[torch.Tensor]]:
    """Losses of the recipe's first steps through the engine, and the weights it began with."""
    recipe = replace(get_recipe(name), batch_size=batch_size)
    mean, std = normalisation(recipe.data.normalize, (0.5,) * 3, (0.5,) * 3)
    pixels = PixelPipeline(recipe.augment, recipe.seed, 32, len(labels), mean, std, ONE.device)
    store = ResidentStore(images, labels, ONE.device)
    few = EvalLoader(ResidentStore(images[:8], labels[:8], ONE.device), pixels, 8, ONE)
    loaders = Loaders(TrainLoader(store, pixels, batch_size, recipe.seed, ONE, recipe.drop_last), few, few, 10)
    torch.manual_seed(recipe.seed)
    model = build_model(recipe.model, channels=3, size=32, num_classes=10).to(memory_format=torch.channels_last)
    first = [p.detach().clone() for p in model.parameters()]
    losses: list[float] = []
    for report in fit(recipe, TrainState(model, recipe, "", ONE.device), loaders, ONE):
        if isinstance(report, StepReport):
            losses += [row["train/loss"] for row in report.rows]
        if len(losses) == STEPS:
            return losses, first
    raise AssertionError("the recipe is over")


def their_losses(
    name: str, batch_size: int, images: np.ndarray, labels: np.ndarray, weights: list[torch.Tensor]
) -> list[float]:
    net = REFERENCE[name]()
    with torch.no_grad():
        for parameter, value in zip(net.parameters(), weights, strict=True):
            parameter.copy_(value)
    return train(net, TRAININGS[name], images, labels, steps=STEPS, batch_size=batch_size)


@pytest.mark.parametrize("name", TRAININGS)
def test_the_first_losses_are_those_of_the_plain_script(name: str, images):
    batch_size = SMALLER_BATCH.get(name, TRAININGS[name].batch_size)
    count = 15 * batch_size + batch_size // 2 + 1  # sixteen steps, the last one uneven, and four more
    pixels, labels = (part[:count] for part in images)
    ours, weights = our_losses(name, batch_size, pixels, labels)
    theirs = their_losses(name, batch_size, pixels, labels, weights)
    assert ours == pytest.approx(theirs, abs=1e-5, rel=0)
    assert max(ours) - min(ours) > 0.05, "nothing has moved: equal losses would say nothing"


def test_they_are_equal_on_random_images_too():
    pixels, labels = random_images(500)
    ours, weights = our_losses("mlp-final", 64, pixels, labels)
    assert ours == pytest.approx(their_losses("mlp-final", 64, pixels, labels, weights), abs=1e-5, rel=0)


@pytest.mark.parametrize("name", TRAININGS)
def test_the_plain_scripts_numbers_are_the_recipes(name: str):
    """They were written down twice, from the notes: here they meet."""
    recipe, training = get_recipe(name), TRAININGS[name]
    optimizer = training.optimizer([torch.nn.Parameter(torch.zeros(1))])
    group = optimizer.param_groups[0]
    assert recipe.batch_size == training.batch_size
    assert recipe.optim.name == type(optimizer).__name__.lower()
    assert (recipe.optim.lr, recipe.optim.weight_decay) == (group["lr"], group["weight_decay"])
    if recipe.optim.name == "sgd":
        assert (recipe.optim.momentum, recipe.optim.nesterov) == (group["momentum"], group["nesterov"])
    else:
        assert recipe.optim.betas == group["betas"]
    assert normalisation(recipe.data.normalize, (0.0,) * 3, (1.0,) * 3) == (training.mean, training.std)
    assert recipe.seed == 0
    cosine = (recipe.schedule.name, recipe.epochs) == ("cosine", training.cosine_epochs)
    assert cosine or (training.cosine_epochs == 0 and recipe.schedule.name in ("constant", "plateau"))


def test_the_plain_script_is_independent():
    tree = ast.parse(Path(plain_training.__file__).read_text())
    imported = {n.names[0].name for n in ast.walk(tree) if isinstance(n, ast.Import)}
    imported |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert {name.split(".")[0] for name in imported} == {"collections", "dataclasses", "numpy", "torch"}
