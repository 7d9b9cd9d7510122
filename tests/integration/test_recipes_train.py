"""Every recipe trains two steps as it stands: its network, augmentation, optimizer and schedule fit together."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest

from distcifar.config import Recipe
from distcifar.data.build import open_data
from distcifar.data.prepare import prepare
from distcifar.recipes import RECIPES
from distcifar.training.build import build_state
from distcifar.training.engine import fit
from distcifar.world import World

MOST_IMAGES = 32  # of a batch here: two steps of ResNet-18 at batch 512 take a minute

AS_OTHERS = ("finetune-resnet18",)  # ten seconds at 224 pixels; finetune-vgg13 takes the same way


def small(recipe: Recipe) -> Recipe:
    """`recipe` on synthetic images, in small batches, with untrained instead of downloaded weights."""
    return replace(
        recipe,
        batch_size=min(recipe.batch_size, MOST_IMAGES),
        model=replace(recipe.model, pretrained=False, freeze=False),
        data=replace(recipe.data, dataset="synthetic", validation=256, train_first=min(recipe.data.train_first, 1024)),
        precision="fp32",
    )


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in AS_OTHERS else name for name in RECIPES]
)
def test_recipe_trains_two_steps(name: str, data_root: Path):
    recipe = small(RECIPES[name])
    prepared = prepare(recipe.data, data_root, announce=print)
    data = open_data(recipe, prepared.folder, World(), mode="resident", threads=1)
    state = build_state(recipe, data, prepared.digest, World())
    before = {key: value.clone() for key, value in state.model.state_dict().items()}
    rows = [row for report in itertools.islice(fit(recipe, state, data.loaders, World()), 2) for row in report.rows]
    assert [row["step"] for row in rows] == [1, 2]
    assert all(math.isfinite(row["train/loss"]) and row["train/grad_norm"] > 0 for row in rows)
    assert any((value != before[key]).any() for key, value in state.model.state_dict().items())
