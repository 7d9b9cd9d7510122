"""What the GPU computes against what the CPU does, on small shapes: the pixels, and the losses of the first steps."""

from dataclasses import replace

import torch

from distcifar.benchmark.place import Place
from distcifar.benchmark.results import Comparison, lines_of
from distcifar.config import Recipe
from distcifar.data.build import open_data
from distcifar.errors import ResourceError
from distcifar.training.build import build_state
from distcifar.training.engine import fit
from distcifar.training.reports import StepReport
from distcifar.world import World

RECIPES, STEPS, IMAGES = ("quick", "cnn-day41"), 4, 512
PIXEL_BAND, LOSS_BAND = 1e-4, 1e-2  # what interpolates differs by roundings; losses in float32 by orders of addition


def check_device(place: Place) -> list[Comparison]:
    """The largest differences. ResourceError where a band is left: then no other figure can be trusted."""
    cpu, found = World(), {}
    for name in RECIPES:
        recipe = place.recipe(name)
        small = replace(recipe.data, train_first=IMAGES)
        recipe = replace(recipe, precision="fp32", batch_size=64, data=small, model=replace(recipe.model, dropout=0.0))
        found[f"{recipe.name}: pixels"] = differ(_pixels(recipe, place, cpu), _pixels(recipe, place, place.world))
        found[f"{recipe.name}: losses"] = differ(_losses(recipe, place, cpu), _losses(recipe, place, place.world))
    for name, value in found.items():
        band = PIXEL_BAND if name.endswith("pixels") else LOSS_BAND
        if not value <= band:
            raise ResourceError(
                f"{name} on {place.world.device} and on the CPU differ by {value:.3g}",
                f"They may differ by {band:g}",
                "Tell us, with the versions of torch and of the driver; train on the CPU meanwhile",
            )
    title = f"{place.world.device} against the CPU"
    return [Comparison(title, "largest difference", lines_of({name: [value] for name, value in found.items()}))]


def differ(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference of two tensors of one shape."""
    return float((a.cpu() - b.cpu()).abs().max())


def _pixels(recipe: Recipe, place: Place, world: World) -> torch.Tensor:
    """The first batch of the second epoch."""
    folder = place.prepare(recipe.data).folder
    data = open_data(recipe, folder, world, mode="resident", threads=place.threads)
    return next(data.loaders.train.batches(1)).images


def _losses(recipe: Recipe, place: Place, world: World) -> torch.Tensor:
    """float64 [STEPS]: of the first steps, in float32."""
    prepared = place.prepare(recipe.data)
    data = open_data(recipe, prepared.folder, world, mode="resident", threads=place.threads)
    state = build_state(recipe, data, prepared.digest, world)
    state.set_precision("fp32")
    losses: list[float] = []
    for report in fit(recipe, state, data.loaders, world):
        if isinstance(report, StepReport):
            losses += [row["train/loss"] for row in report.rows]
        if len(losses) >= STEPS:
            break
    return torch.tensor(losses[:STEPS], dtype=torch.float64)
