"""A fresh TrainState from a recipe: the network and its first weights."""

import torch
from torch import Tensor

from distcifar.config import Recipe
from distcifar.data.build import OpenData
from distcifar.models import build_model, initialise_from_data
from distcifar.training.freezing import require_layers
from distcifar.training.hard_images import HardImages
from distcifar.training.state import TrainState
from distcifar.world import World

INITIAL_IMAGES = 5000  # for weights that are computed from the data


def build_state(recipe: Recipe, data: OpenData, data_digest: str, world: World) -> TrainState:
    """The state before the first step, the same on every rank."""
    torch.manual_seed(recipe.seed)
    model = build_model(
        recipe.model,
        channels=data.manifest.channels,
        size=data.loaders.train.pixels.smallest_size(),
        num_classes=data.manifest.num_classes,
    )
    require_layers(model, recipe)
    model = model.to(world.device).to(memory_format=torch.channels_last)
    initialise_from_data(model, first_images(data, INITIAL_IMAGES))
    if recipe.sync_batchnorm and world.size > 1 and world.device.type == "cuda":
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    state = TrainState(model, recipe, data_digest, world.device)
    if recipe.hard_share < 1:
        state.hard = HardImages.unknown(data.loaders.train.store.num_samples, world.device)
    return state


def first_images(data: OpenData, count: int) -> Tensor:
    """The first training images as evaluation sees them: float32 [n, C, S, S], the same on every rank."""
    loader = data.loaders.train
    ids = torch.arange(min(count, loader.store.num_samples)).numpy()
    images, rows, _ = next(iter(loader.store.fetch([ids])))
    return loader.pixels.evaluate(images, rows)
