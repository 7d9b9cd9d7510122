"""The result of a run: the test split, measured once, with the best weights (contract 5)."""

import time
from dataclasses import dataclass
from typing import Any

import torch

from distcifar.data.build import OpenData
from distcifar.models import count_parameters
from distcifar.training.evaluate import Interrupted, evaluate
from distcifar.training.metrics import Evaluation
from distcifar.training.samples import Samples, sample_predictions
from distcifar.training.state import TrainState
from distcifar.world import World


@dataclass(frozen=True)
class Result:
    """What comes of a run besides its model."""

    summary: dict[str, Any]  # for summary.json, whose keys docs/runs.md explains
    samples: Samples


def summarise(
    state: TrainState, data: OpenData, world: World, *, interrupted: Interrupted | None = None
) -> Result | None:
    """The figures of a run and what its model makes of test images. A collective; ends the state's training.

    The model is left with the best weights. None where a rank has asked to stop (evaluate.py).
    """
    progress, views = state.progress, state.recipe.tta
    start = time.monotonic()
    state.model.load_state_dict(state.chosen_weights())
    test = evaluate(
        state.model,
        data.loaders.test,
        world,
        num_classes=data.manifest.num_classes,
        precision=progress.precision,
        views=views,
        interrupted=interrupted,
    )
    if test is None:
        return None
    samples = sample_predictions(state.model, data.loaders.test, precision=progress.precision, views=views)
    return Result(_figures(state, data, world, test, seconds=progress.seconds + time.monotonic() - start), samples)


def _figures(state: TrainState, data: OpenData, world: World, test: Evaluation, *, seconds: float) -> dict[str, Any]:
    recipe, progress, names = state.recipe, state.progress, data.manifest.class_names
    return {
        "recipe": recipe.name,
        "test_accuracy": test.accuracy,
        "test_loss": test.loss,
        "selected_on": recipe.select_on,
        "select_metric": recipe.select_metric,
        "best_metric": progress.best_metric,
        "best_epoch": progress.best_epoch,
        "epochs": progress.epoch,
        "steps": progress.step,
        "outcome": progress.outcome,
        "seconds": seconds,
        "images_per_s": progress.step * recipe.batch_size / max(progress.seconds, 1e-9),
        "parameters": count_parameters(state.model)[0],
        "workers": world.size,
        "device": torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "cpu",
        "precision": progress.precision,
        "loader": data.mode,
        "per_class_accuracy": dict(zip(names, test.per_class, strict=True)),
        "confusion": test.confusion.tolist(),
        "recipe_digest": recipe.digest(),
        "data_digest": state.data_digest,
    }
