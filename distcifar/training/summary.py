"""The result of a run: the test split, measured once, with the best weights (contract 5)."""

import time
from typing import Any

import torch

from distcifar.data.build import OpenData
from distcifar.models import count_parameters
from distcifar.training.evaluate import Interrupted, evaluate
from distcifar.training.state import TrainState
from distcifar.world import World


def summarise(
    state: TrainState, data: OpenData, world: World, *, interrupted: Interrupted | None = None
) -> dict[str, Any] | None:
    """The content of summary.json, whose keys docs/runs.md explains. A collective; ends the state's training.

    The model is left with the best weights. None where a rank has asked to stop (evaluate.py).
    """
    recipe, progress = state.recipe, state.progress
    start = time.monotonic()
    state.model.load_state_dict(state.chosen_weights())
    test = evaluate(
        state.model,
        data.loaders.test,
        world,
        num_classes=data.manifest.num_classes,
        precision=progress.precision,
        flip=recipe.tta == "flip",
        interrupted=interrupted,
    )
    if test is None:
        return None
    names = data.manifest.class_names
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
        "seconds": progress.seconds + time.monotonic() - start,
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
