"""TrainState: nothing is missing from what is saved, and what is loaded is what was saved."""

import json
from dataclasses import asdict, fields, replace
from functools import cache

import pytest
import torch

from distcifar.config import OptimConfig, ScheduleConfig, Stage
from distcifar.training.schedule import Plateau
from distcifar.training.state import Progress, TrainState
from tests.support import NORM_CNN, differing_tensors, fresh, small_recipe, train

RECIPES = {
    "momentum": small_recipe(model=NORM_CNN, optim=OptimConfig(lr=0.05, momentum=0.9)),
    "adam with an average": small_recipe(model=NORM_CNN, optim=OptimConfig(name="adam", lr=0.01), ema_decay=0.9),
    "muon": small_recipe(model=NORM_CNN, optim=OptimConfig(name="muon", lr=0.05)),
    "plateau": small_recipe(schedule=ScheduleConfig(name="plateau", patience=0)),
}


@cache
def trained(name: str) -> TrainState:
    """The state after training; tests read it only."""
    state, data = fresh(RECIPES[name])
    train(state, data)
    return state


def through_json(value):
    return json.loads(json.dumps(value))


@pytest.mark.parametrize("name", RECIPES)
def test_a_fresh_state_that_is_loaded_equals_the_saved_one(name: str):
    saved = trained(name)
    loaded, _ = fresh(RECIPES[name])
    assert differing_tensors(loaded.tensors(), saved.tensors()), "training has changed nothing?"
    loaded.load(saved.tensors(), through_json(saved.scalars()), saved.chosen_weights())
    assert differing_tensors(loaded.tensors(), saved.tensors()) == []
    assert differing_tensors(loaded.chosen_weights(), saved.chosen_weights()) == []
    assert loaded.scalars() == saved.scalars()


@pytest.mark.parametrize("name", RECIPES)
def test_every_tensor_of_the_optimizers_and_of_the_model_is_among_the_saved_ones(name: str):
    saved = trained(name)
    held = [value for value in saved.model.state_dict().values()]
    for optimizer in saved.optimizers:
        held += [v for slots in optimizer.state.values() for v in slots.values() if isinstance(v, torch.Tensor)]
    if saved.ema is not None:
        held += list(saved.ema.state_dict().values())
    places = {(t.data_ptr(), t.shape) for t in saved.tensors().values()}
    assert {(t.data_ptr(), t.shape) for t in held} <= places


def test_every_field_of_progress_is_among_the_scalars():
    """A new field that is forgotten in `scalars` or `load` would be lost at the first restart."""
    saved = trained("plateau")
    names = {field.name for field in fields(Progress)}
    assert through_json(saved.scalars())["progress"].keys() == names
    default = asdict(Progress())
    same = {name for name in names if asdict(saved.progress)[name] == default[name]}
    assert same <= {"epoch_step", "precision", "wait", "best_metric", "rollbacks", "skipped"}, (
        "the rest has moved in this training"
    )


@pytest.mark.parametrize("name", RECIPES)
def test_the_scalars_are_json_for_any_reader(name: str):
    """No NaN and no Infinity, which only Python reads, in a state before and after training."""
    for state in (fresh(RECIPES[name])[0], trained(name)):
        json.dumps(state.scalars(), allow_nan=False)


def test_fp16s_scale_is_saved_and_taken_up_again():
    saved, _ = fresh(RECIPES["momentum"])
    saved.set_precision("fp16")
    saved.scaler.scale(torch.ones(1))  # the scale comes to be with its first use
    saved.scaler.update(512.0)
    loaded, _ = fresh(RECIPES["momentum"])
    loaded.load(saved.tensors(), through_json(saved.scalars()), saved.chosen_weights())
    assert loaded.progress.precision == "fp16"
    assert loaded.scaler.is_enabled()
    assert loaded.scaler.scale(torch.ones(1)).item() == 512.0


@pytest.mark.parametrize("lost", ["model.head.weight", "ema.module.head.bias", "ema.n_averaged", "tally"])
def test_a_missing_tensor_is_an_error_and_never_a_silent_default(lost: str):
    saved = trained("adam with an average")
    tensors = saved.tensors()
    del tensors[lost]
    loaded, _ = fresh(RECIPES["adam with an average"])
    with pytest.raises((RuntimeError, KeyError)):
        loaded.load(tensors, saved.scalars(), saved.chosen_weights())


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("momentum", "optim.head.weight.momentum_buffer"),
        ("muon", "optim.head.weight.momentum_buffer"),
        ("adam with an average", "optim.head.weight.exp_avg"),
    ],
)
def test_a_missing_tensor_of_the_optimizer_is_an_error_too(name: str, lost: str):
    """`load` promises to be strict; a momentum that silently starts from zero is what the users suffered (U1)."""
    saved = trained(name)
    tensors = saved.tensors()
    del tensors[lost]
    loaded, _ = fresh(RECIPES[name])
    with pytest.raises((RuntimeError, KeyError, ValueError)):
        loaded.load(tensors, saved.scalars(), saved.chosen_weights())


def test_the_best_weights_are_a_copy_that_training_does_not_touch():
    state, _ = fresh(RECIPES["momentum"])
    state.keep_best()
    before = {name: value.clone() for name, value in state.best.items()}
    with torch.no_grad():
        for tensor in state.model.state_dict().values():
            tensor.add_(1)
    assert differing_tensors(state.best, before) == []
    assert differing_tensors(state.chosen_weights(), before) == []


def test_before_any_epoch_the_chosen_weights_are_the_current_ones():
    state, _ = fresh(RECIPES["adam with an average"])
    assert differing_tensors(state.chosen_weights(), state.model.state_dict()) == []
    loaded, _ = fresh(RECIPES["adam with an average"])
    loaded.load(state.tensors(), state.scalars(), state.chosen_weights())
    assert loaded.best is None, "a state without a best epoch is loaded as one"


def test_a_stage_starts_from_the_best_weights_with_nothing_of_the_optimizer_left():
    recipe = small_recipe(
        model=NORM_CNN, ema_decay=0.9, optim=OptimConfig(name="adam", lr=0.01),
        schedule=ScheduleConfig(name="plateau", patience=0), then=(Stage(epochs=1, lr=0.01),),
    )  # fmt: skip
    state, _ = fresh(recipe)
    best = {
        name: torch.randn_like(v) if v.is_floating_point() else v + 3 for name, v in state.model.state_dict().items()
    }
    state.best = {name: value.clone() for name, value in best.items()}
    for optimizer in state.optimizers:
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.ones_like(p)
        optimizer.step()
    state.ema.update_parameters(state.model)
    state.progress.plateau = state.progress.plateau.after_epoch(1.0, recipe.schedule)
    state.start_stage()
    assert differing_tensors(state.model.state_dict(), best) == []
    assert all(not optimizer.state for optimizer in state.optimizers)
    assert state.progress.plateau == Plateau()
    state.ema.update_parameters(state.model)
    assert differing_tensors(state.evaluated.state_dict(), best) == [], "the average starts anew, too"


def test_a_state_with_an_average_is_loaded_into_one_without_and_the_other_way_round():
    """What a branch does that switches the average off or on."""
    averaged, plain = RECIPES["adam with an average"], replace(RECIPES["adam with an average"], ema_decay=0.0)
    saved = trained("adam with an average")
    without, _ = fresh(plain)
    without.load(saved.tensors(), through_json(saved.scalars()), saved.chosen_weights())
    assert without.ema is None
    assert differing_tensors(without.model.state_dict(), saved.model.state_dict()) == []
    again, _ = fresh(averaged)
    again.load(without.tensors(), through_json(without.scalars()), without.chosen_weights())
    again.ema.update_parameters(again.model)
    assert differing_tensors(again.evaluated.state_dict(), saved.model.state_dict()) == [], "the first step copies"


def test_the_optimizers_tensors_go_by_the_names_of_their_weights_and_not_by_their_order():
    """Other groups (a head with a rate of its own) have another order; the momentum stays with its weight."""
    recipe = RECIPES["momentum"]
    saved = trained("momentum")
    loaded, _ = fresh(replace(recipe, optim=replace(recipe.optim, head_lr_factor=3.0, bias_lr_factor=2.0)))
    assert len(loaded.optimizers[0].param_groups) > len(saved.optimizers[0].param_groups)
    loaded.load(saved.tensors(), through_json(saved.scalars()), saved.chosen_weights())
    assert differing_tensors(loaded.tensors(), saved.tensors()) == []
