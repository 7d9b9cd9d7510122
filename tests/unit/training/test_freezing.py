"""Layers that stop learning: from their step on, nowhere else, and alike where a run goes on."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from distcifar.config import OptimConfig, Recipe
from distcifar.errors import ConfigError
from distcifar.training.checkpoint import load_checkpoint, save_checkpoint
from tests.support import NORM_CNN, fresh, reports, small_recipe

FIRST = "body.0"  # the first convolution of NORM_CNN
SGD = OptimConfig(lr=0.05, momentum=0.9, freeze=(f"{FIRST}@0.5", "body.1@1.0"))


def weights_after_each_step(recipe: Recipe) -> list[dict[str, torch.Tensor]]:
    state, data = fresh(recipe)
    found = [{k: v.clone() for k, v in state.model.state_dict().items()}]
    for report in reports(state, data):
        if hasattr(report, "rows") and report.rows:
            found.append({k: v.clone() for k, v in state.model.state_dict().items()})
    return found


def test_a_layer_stops_at_its_share_and_the_others_go_on():
    """Six steps: body.0 learns in the first three, body.1 (share 1.0) in all, and the head does not notice."""
    weights = weights_after_each_step(small_recipe(model=NORM_CNN, optim=SGD))
    assert len(weights) == 7
    moved = {
        name: [not torch.equal(a[name], b[name]) for a, b in pairwise(weights)]
        for name in (f"{FIRST}.weight", "body.1.weight", "head.weight")
    }
    assert moved == {
        f"{FIRST}.weight": [True] * 3 + [False] * 3,
        "body.1.weight": [True] * 6,
        "head.weight": [True] * 6,
    }


def test_up_to_that_step_it_is_the_training_without():
    with_, without = (
        weights_after_each_step(small_recipe(model=NORM_CNN, optim=optim)) for optim in (SGD, replace(SGD, freeze=()))
    )
    same = [all(torch.equal(a[name], b[name]) for name in a) for a, b in zip(with_, without, strict=True)]
    assert same == [True] * 4 + [False] * 3


@pytest.mark.parametrize("optim", [SGD, replace(SGD, name="muon", muon_lr=0.02), replace(SGD, name="adamw", lr=0.01)])
def test_a_run_that_goes_on_after_it_ends_bitwise_alike(optim: OptimConfig, tmp_path):
    recipe = small_recipe(model=NORM_CNN, optim=optim)
    whole = weights_after_each_step(recipe)[-1]
    state, data = fresh(recipe)
    steps = reports(state, data)
    while state.progress.step < 4:
        next(steps)
    save_checkpoint(tmp_path, state, {})
    again, data = fresh(recipe)
    load_checkpoint(next(tmp_path.glob("step-*"))).restore(again)
    for _ in reports(again, data):
        pass
    assert all(torch.equal(value, whole[name]) for name, value in again.model.state_dict().items())


def test_a_layer_that_is_not_there_is_told_with_those_that_are():
    with pytest.raises(ConfigError, match=r"'body\.99'.*body\.0.*head"):
        fresh(small_recipe(model=NORM_CNN, optim=replace(SGD, freeze=("body.99@0.5",))))


@pytest.mark.parametrize("item", ["body.0", "body.0@", "body.0@1.5", "@0.5", "body.0@half"])
def test_each_layer_has_its_moment(item: str):
    with pytest.raises(ConfigError, match="share of the training"):
        OptimConfig(freeze=(item,))
