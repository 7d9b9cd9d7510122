"""Contract 5 and the seeds' U2: which epoch is the best, when the rate falls, when a run is over."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distcifar.config import Recipe, ScheduleConfig, Stage
from distcifar.training.metrics import Evaluation
from distcifar.training.selection import best_steps, choose, stage_at
from distcifar.training.state import TrainState
from tests.support import fresh, small_recipe

NAN = float("nan")
HALVE_AT_ONCE = ScheduleConfig(name="plateau", gamma=0.5, patience=0)


def measured(loss: float, accuracy: float) -> Evaluation:
    return Evaluation(loss, accuracy, torch.zeros(4, 4, dtype=torch.long))


def after(recipe: Recipe, results: list[Evaluation | None]) -> tuple[TrainState, list[bool]]:
    """The state after epochs with these `results`, and which of them were the best so far."""
    state, _ = fresh(recipe)
    improved = []
    for result in results:
        assert not state.progress.outcome, "an epoch after the end"
        state.progress.epoch += 1
        state.progress.step += 3
        with torch.no_grad():
            state.model.head.bias.fill_(state.progress.epoch)  # marks the weights of the epoch
        improved.append(choose(recipe, state, result))
    return state, improved


def best_epoch_of_weights(state: TrainState) -> float:
    return state.best["head.bias"][0].item()


@pytest.mark.parametrize(("metric", "best", "value"), [("accuracy", 2, 0.7), ("loss", 3, 0.9)])
def test_the_best_epoch_is_chosen_by_the_metric_that_the_recipe_names(metric: str, best: int, value: float):
    results = [measured(1.2, 0.5), measured(1.1, 0.7), measured(0.9, 0.6), measured(1.0, 0.65)]
    state, improved = after(small_recipe(epochs=4, select_metric=metric), results)
    progress = state.progress
    assert (progress.best_epoch, progress.best_metric, progress.best_step) == (best, value, 3 * best)
    assert best_epoch_of_weights(state) == best, "the weights kept are those of that epoch, not of a later one"
    assert improved == [True, True, metric == "loss", False]


@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_of_equal_epochs_the_first_is_the_best(metric: str):
    state, improved = after(small_recipe(epochs=3, select_metric=metric), [measured(1.0, 0.5)] * 3)
    assert state.progress.best_epoch == 1
    assert improved == [True, False, False]


def test_last_takes_the_last_epoch_however_bad():
    state, improved = after(small_recipe(epochs=3, select_on="last"), [measured(1, 0.9), None, measured(9, 0.1)])
    assert state.progress.best_epoch == best_epoch_of_weights(state) == 3
    assert improved == [True, True, True]


def test_a_first_epoch_with_a_loss_of_nan_is_not_the_best_for_ever():
    """A net can diverge on validation images alone (BatchNorm's statistics): its NaN must not beat what follows."""
    results = [measured(NAN, 0.1), measured(0.8, 0.6), measured(0.9, 0.5)]
    state, improved = after(small_recipe(epochs=3, select_metric="loss"), results)
    assert (state.progress.best_epoch, state.progress.best_metric) == (2, 0.8)
    assert improved[1:] == [True, False]


def test_a_later_nan_is_no_improvement():
    state, improved = after(small_recipe(epochs=2, select_metric="loss"), [measured(0.8, 0.6), measured(NAN, 0.1)])
    assert improved == [True, False]
    assert state.progress.best_metric == 0.8


def test_early_stopping_bears_its_epochs_from_the_best_one_on():
    results = [measured(1, a) for a in (0.1, 0.3, 0.2, 0.3, 0.2)]
    state, _ = after(small_recipe(epochs=50, early_stop=3), results)
    assert (state.progress.epoch, state.progress.outcome) == (5, "early stop")
    assert state.progress.best_epoch == 2


def test_an_improvement_starts_the_wait_anew():
    results = [measured(1, a) for a in (0.1, 0.05, 0.2, 0.15, 0.12)]
    state, _ = after(small_recipe(epochs=50, early_stop=2), results)
    assert state.progress.epoch == 5


def test_without_early_stopping_all_epochs_are_trained():
    state, _ = after(small_recipe(epochs=6), [measured(1, 0.5)] * 6)
    assert state.progress.outcome == "finished"


def test_the_plateau_watches_the_loss_whatever_chooses_the_best():
    recipe = small_recipe(epochs=3, select_metric="accuracy", schedule=HALVE_AT_ONCE)
    state, _ = after(recipe, [measured(1.0, 0.1), measured(1.1, 0.9), measured(0.5, 0.2)])
    assert state.progress.plateau.factor == 0.5


def test_a_plateau_in_a_later_stage_counts_only_its_own_epochs():
    recipe = small_recipe(epochs=2, then=(Stage(epochs=2, lr=0.1, schedule=HALVE_AT_ONCE),))
    state, _ = after(recipe, [measured(1.0, 0.1), measured(2.0, 0.1)])
    assert state.progress.plateau.factor == 1.0, "the first stage's rate is constant"
    for loss in (2.0, 2.1):
        state.progress.epoch += 1
        choose(recipe, state, measured(loss, 0.1))
    assert state.progress.plateau.factor == 0.5


def test_epochs_belong_to_stages_one_after_another():
    stages: dict[str, Any] = {"epochs": 2, "then": (Stage(epochs=1, lr=0.3), Stage(epochs=3, lr=0.1))}
    recipe = small_recipe(**stages)
    found = [(stage_at(recipe, epoch)[0].lr, stage_at(recipe, epoch)[1]) for epoch in range(6)]
    assert found == [(0.05, 0), (0.05, 1), (0.3, 0), (0.1, 0), (0.1, 1), (0.1, 2)]
    with pytest.raises(ValueError, match="past"):
        stage_at(recipe, 6)


RESULTS = st.lists(
    st.tuples(st.sampled_from([0.5, 1.0, 2.0, NAN, float("inf")]), st.sampled_from([0.0, 0.25, 0.5])), max_size=9
)
TEMPLATE, _ = fresh(small_recipe())


@given(RESULTS, st.sampled_from(["accuracy", "loss"]), st.integers(0, 4))
def test_the_best_checkpoints_that_are_kept_are_those_of_the_best_epochs(results: list, metric: str, count: int):
    """Their first is the one that `choose` has chosen, also where a loss was no number."""
    recipe = small_recipe(epochs=99, select_metric=metric)
    state = TEMPLATE
    state.progress = type(state.progress)()
    rows: list[dict[str, Any]] = []
    for number, (loss, accuracy) in enumerate(results, 1):
        state.progress.epoch, state.progress.step = number, 3 * number
        choose(recipe, state, measured(loss, accuracy))
        rows.append({"step": 3 * number, "validation/loss": loss, "validation/accuracy": accuracy})
    steps = best_steps(recipe, rows, count)
    assert len(steps) <= count
    values = {row["step"]: row[f"validation/{metric}"] * (1 if metric == "accuracy" else -1) for row in rows}
    assert [values[step] for step in steps] == sorted((values[step] for step in steps), reverse=True)
    if steps:
        assert steps[0] == state.progress.best_step
    elif count:
        assert state.progress.best_step == 0


def test_epochs_that_were_not_measured_are_no_candidates():
    rows = [{"step": 3}, {"step": 6, "validation/loss": 1.0, "validation/accuracy": 0.5}, {"step": 9}]
    assert best_steps(small_recipe(), rows, 5) == [6]
    assert best_steps(small_recipe(select_on="last"), rows, 5) == []
