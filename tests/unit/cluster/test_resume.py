"""Going on with a run, from another run, or for longer: exactly, or not at all and with the reason."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distcifar.cluster.resume import OPEN_ENDED, extends
from distcifar.config import DataConfig, ModelConfig, OptimConfig, Recipe, ScheduleConfig, Stage
from distcifar.errors import CheckpointError, StorageError
from distcifar.tracking.journal import read_events
from tests.support import NORM_CNN, small_recipe
from tests.unit.cluster.runs import (
    Killed,
    assert_same_end,
    every_checkpoint,
    killed_at,
    kinds,
    progress_of,
    rows_in,
    saved,
    stopped_at,
    typed,
)

MOMENTUM = OptimConfig(lr=0.1, momentum=0.9)
EXTENSIBLE = {
    "constant": small_recipe(model=NORM_CNN, ema_decay=0.8, optim=MOMENTUM),
    "step": small_recipe(optim=MOMENTUM, schedule=ScheduleConfig(name="step", step_epochs=1, gamma=0.5)),
    "exponential": small_recipe(
        optim=OptimConfig(name="adam", lr=0.01),
        schedule=ScheduleConfig(name="exponential", every="step", gamma=0.5, warmup_epochs=1.5),
    ),
    "plateau": small_recipe(
        optim=MOMENTUM, ema_decay=0.5, schedule=ScheduleConfig(name="plateau", gamma=0.5, patience=0)
    ),
}
PLAIN = small_recipe(optim=MOMENTUM)
LONGER = replace(PLAIN, epochs=4)
FINISHED, STOPPED = "finished", "stopped"


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of PLAIN, and of one of LONGER that was stopped inside its second epoch."""
    runs = tmp_path_factory.mktemp("origin")
    with every_checkpoint():
        typed(PLAIN, runs, FINISHED)
        typed(LONGER, runs, STOPPED, listen=stopped_at(runs / STOPPED, 4), keep_last=9)
    assert progress_of(runs / STOPPED)["epoch_step"] in (1, 2)
    return runs


@pytest.fixture
def runs(origin: Path, tmp_path: Path) -> Path:
    """A copy of it to spoil."""
    shutil.copytree(origin, tmp_path / "runs")
    return tmp_path / "runs"


def run_json(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


# More epochs


@pytest.mark.parametrize("name", EXTENSIBLE)
def test_a_run_of_two_epochs_extended_to_four_ends_bitwise_like_a_run_of_four(name: str, tmp_path: Path):
    longer = replace(EXTENSIBLE[name], epochs=4)
    typed(longer, tmp_path, "whole")
    typed(EXTENSIBLE[name], tmp_path, "extended")
    typed(longer, tmp_path, "extended")
    assert_same_end(tmp_path / "extended", tmp_path / "whole")
    assert "extended" in kinds(tmp_path / "extended")


def test_another_name_extends_as_well_and_leaves_the_first_run_alone(runs: Path):
    before = sorted((p, p.stat().st_mtime_ns) for p in (runs / FINISHED).rglob("*"))
    typed(LONGER, runs, "whole")
    typed(LONGER, runs, "other", resume=str(runs / FINISHED))
    assert_same_end(runs / "other", runs / "whole")
    assert sorted((p, p.stat().st_mtime_ns) for p in (runs / FINISHED).rglob("*")) == before


def test_an_extension_that_is_killed_goes_on_with_the_same_command(runs: Path):
    typed(LONGER, runs, "whole")
    with pytest.raises(Killed):
        typed(LONGER, runs, FINISHED, listen=killed_at(8))
    typed(LONGER, runs, FINISHED)
    assert_same_end(runs / FINISHED, runs / "whole")


def test_an_unfinished_run_may_be_given_more_epochs_too(tmp_path: Path):
    typed(LONGER, tmp_path, "whole")
    typed(PLAIN, tmp_path, "run", listen=stopped_at(tmp_path / "run", 4))
    typed(LONGER, tmp_path, "run")
    assert_same_end(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("name", ["cosine", "linear", "onecycle"])
def test_a_schedule_that_depends_on_the_end_is_named_and_not_extended(name: str, tmp_path: Path):
    recipe = small_recipe(epochs=1, schedule=ScheduleConfig(name=name))
    typed(recipe, tmp_path)
    with pytest.raises(StorageError, match=f"epochs: 1 -> 2; the {name} schedule spreads"):
        typed(replace(recipe, epochs=2), tmp_path)
    with pytest.raises(StorageError, match=f"epochs: 1 -> 2; the {name} schedule spreads"):
        typed(replace(recipe, epochs=2), tmp_path, "other", resume=str(tmp_path / "run"))
    assert not (tmp_path / "other").exists()
    assert (tmp_path / "run/summary.json").exists()


SCHEDULES = st.sampled_from(["constant", "step", "exponential", "cosine", "linear", "onecycle", "plateau"])


@given(SCHEDULES, st.integers(1, 9), st.integers(1, 9), st.booleans(), st.booleans())
def test_only_more_epochs_of_an_open_ended_schedule_extend(name: str, old: int, new: int, changed: bool, staged: bool):
    then = (Stage(epochs=1, lr=0.1),) if staged else ()
    before = small_recipe(epochs=old, schedule=ScheduleConfig(name=name), then=then)
    now = replace(before, epochs=new, label_smoothing=0.1 if changed else 0.0)
    assert extends(before, now) == (new > old and name in OPEN_ENDED and not changed and not staged)


# Refused and named


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"batch_size": 8}, "batch_size: 16 -> 8"),
        ({"optim": OptimConfig(lr=0.2, momentum=0.9)}, "optim.lr: 0.1 -> 0.2"),
        ({"epochs": 1}, "epochs: 4 -> 1"),
        ({"epochs": 5, "seed": 1}, "epochs: 4 -> 5; seed: 0 -> 1"),
    ],
)
def test_an_unfinished_run_with_another_recipe_is_refused_with_the_fields(runs: Path, changes: dict, named: str):
    with pytest.raises(StorageError, match=named) as caught:
        typed(replace(LONGER, **changes), runs, STOPPED)
    assert "--branch" in caught.value.remedy
    typed(LONGER, runs, STOPPED)  # nothing was spoilt


def test_a_finished_run_is_refused_with_its_accuracy(runs: Path):
    accuracy = json.loads((runs / FINISHED / "summary.json").read_text())["test_accuracy"]
    with pytest.raises(StorageError, match=rf"is finished \(test accuracy {accuracy:.2%}\)"):
        typed(PLAIN, runs, FINISHED)
    with pytest.raises(StorageError, match=r"optim\.lr"):
        typed(replace(PLAIN, optim=OptimConfig(lr=0.2, momentum=0.9)), runs, FINISHED)


def test_a_run_that_stopped_early_is_refused_as_such(tmp_path: Path):
    recipe = small_recipe(epochs=9, early_stop=1, optim=OptimConfig(lr=1e-9, momentum=0.0))
    typed(recipe, tmp_path)
    with pytest.raises(StorageError, match="finished by early stopping"):
        typed(replace(recipe, epochs=20), tmp_path)


def test_other_data_are_refused(runs: Path):
    with pytest.raises(StorageError, match="trained on other data"):
        typed(LONGER, runs, STOPPED, data="e" * 64)
    with pytest.raises(StorageError, match="trained on other data"):
        typed(LONGER, runs, "other", data="e" * 64, resume=str(runs / STOPPED))


def test_never_refuses_even_what_could_go_on(runs: Path):
    with pytest.raises(StorageError, match="exists"):
        typed(LONGER, runs, STOPPED, resume="never")
    typed(PLAIN, runs, "new", resume="never")


@pytest.mark.parametrize("place", ["nothing", "finished/model", "finished/checkpoints"])
def test_a_path_without_a_checkpoint_is_refused(runs: Path, place: str):
    with pytest.raises(CheckpointError, match=r"no checkpoint|is missing"):
        typed(PLAIN, runs, "other", resume=str(runs / place))
    assert not (runs / "other").exists()


def test_a_damaged_checkpoint_is_named_and_a_run_directory_gives_its_last_good_one(runs: Path):
    newest = saved(runs / STOPPED).folder
    with open(newest / "state.safetensors", "r+b") as file:
        file.write(b"?")
    with pytest.raises(CheckpointError, match=r"state\.safetensors is damaged"):
        typed(LONGER, runs, "other", resume=str(newest))
    typed(LONGER, runs, "whole")
    typed(LONGER, runs, "other", resume=str(runs / STOPPED))
    assert_same_end(runs / "other", runs / "whole")


# From another run


@pytest.mark.parametrize("step", [3, None])  # a checkpoint between two epochs; the newest, inside one
def test_from_another_run_into_a_new_name_ends_like_the_other_would_have(runs: Path, step: int | None):
    typed(LONGER, runs, "whole")
    path = runs / STOPPED / (f"checkpoints/step-{step:08d}" if step else "")
    typed(LONGER, runs, "other", resume=str(path))
    assert_same_end(runs / "other", runs / "whole")
    assert (runs / "other/metrics.csv").read_text().count("\n") == 1 + len(rows_in(runs / "whole"))


def test_a_checkpoint_that_was_moved_and_renamed_is_gone_on_with(runs: Path, tmp_path: Path):
    """Who keeps a good one aside gives it a name of his own: the run must not silently begin at step 0."""
    shutil.move(saved(runs / STOPPED).folder, tmp_path / "good")
    typed(LONGER, runs, "other", resume=str(tmp_path / "good"))
    assert read_events(runs / "other")[0]["kind"] == "continue"


def test_where_a_run_comes_from_is_in_its_run_json_and_survives_restarts(runs: Path):
    checkpoint = saved(runs / STOPPED).folder
    words: dict[str, Any] = {"resume": str(runs / STOPPED), "name": "other"}
    typed(LONGER, runs, **words, listen=stopped_at(runs / "other", 7))
    parent = run_json(runs / "other")["parent"]
    assert parent["checkpoint"] == str(checkpoint)
    assert parent["recipe_digest"] == LONGER.digest()
    assert parent["step"] == progress_of(runs / STOPPED)["step"] == 5
    typed(LONGER, runs, **words, listen=stopped_at(runs / "other", 9))
    assert run_json(runs / "other")["parent"] == parent
    typed(LONGER, runs, "other")
    assert run_json(runs / "other")["parent"] == parent


def test_a_run_of_that_name_that_began_elsewhere_is_not_taken_for_the_one_to_start_from(runs: Path):
    typed(LONGER, runs, "mine", listen=stopped_at(runs / "mine", 2))
    with pytest.raises(StorageError, match="did not begin from"):
        typed(LONGER, runs, "mine", resume=str(runs / STOPPED))
    typed(LONGER, runs, "mine", resume=str(runs / "mine"))  # its own path is what "auto" means


def test_a_run_may_be_replaced_by_one_that_starts_from_its_own_checkpoint(runs: Path):
    typed(LONGER, runs, "whole")
    typed(LONGER, runs, STOPPED, resume=str(runs / STOPPED / "checkpoints/step-00000003"), overwrite=True)
    assert_same_end(runs / STOPPED, runs / "whole")


def test_a_refused_start_from_another_run_leaves_the_run_that_it_would_have_replaced(runs: Path):
    before = rows_in(runs / FINISHED)
    with pytest.raises(StorageError, match="another recipe"):
        typed(replace(PLAIN, seed=5), runs, FINISHED, resume=str(runs / STOPPED), overwrite=True)
    assert rows_in(runs / FINISHED) == before


# Branches

CHANGES: dict[str, dict[str, Any]] = {
    "rate": {"optim": OptimConfig(lr=0.02, momentum=0.9)},
    "average on": {"ema_decay": 0.5},
    "measure": {"select_metric": "loss"},
    "batch size": {"batch_size": 8},
    "schedule": {"schedule": ScheduleConfig(name="cosine")},
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_branch_between_epochs_goes_on_with_the_change(runs: Path, name: str):
    changed = replace(PLAIN, epochs=4, **CHANGES[name])
    with pytest.raises(StorageError, match=next(iter(CHANGES[name]))):
        typed(changed, runs, "branch", resume=str(runs / FINISHED))
    typed(changed, runs, "branch", resume=str(runs / FINISHED), branch=True)
    rows = rows_in(runs / "branch")
    shared = len(rows_in(runs / FINISHED))
    assert rows[:shared] == rows_in(runs / FINISHED)
    assert rows[-1]["epoch"] == 4
    typed(LONGER, runs, "unchanged")
    assert rows[-1] != rows_in(runs / "unchanged")[-1], "the change has changed nothing"
    assert run_json(runs / "branch")["parent"]["recipe_digest"] == PLAIN.digest()


def test_a_branch_without_the_average_goes_on_from_the_plain_weights(tmp_path: Path):
    recipe = replace(EXTENSIBLE["constant"], epochs=2)
    typed(recipe, tmp_path)
    typed(replace(recipe, epochs=3, ema_decay=0.0), tmp_path, "branch", resume=str(tmp_path / "run"), branch=True)
    assert not any(name.startswith("ema.") for name in saved(tmp_path / "branch").tensors)


def test_a_branch_by_another_measure_forgets_what_was_best_by_the_first(runs: Path):
    changed = replace(PLAIN, epochs=3, select_metric="loss")
    typed(changed, runs, "branch", resume=str(runs / FINISHED), branch=True)
    progress = progress_of(runs / "branch")
    assert (progress["best_epoch"], progress["best_metric"]) == (3, rows_in(runs / "branch")[-1]["validation/loss"])


@pytest.mark.parametrize("changes", [{"batch_size": 8}, {"seed": 3}, {"drop_last": True}])
def test_inside_an_epoch_a_branch_does_not_change_the_order_of_its_steps(runs: Path, changes: dict[str, Any]):
    with pytest.raises(StorageError, match="inside an epoch"):
        typed(replace(LONGER, **changes), runs, "branch", resume=str(runs / STOPPED), branch=True)
    assert not (runs / "branch").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"model": ModelConfig(name="mlp", hidden=(13,))},
        {"optim": OptimConfig(name="adam")},
        {"data": DataConfig(validation=24, normalize="half")},
    ],
)
def test_a_branch_changes_neither_net_nor_images_nor_kind_of_optimizer(runs: Path, changes: dict[str, Any]):
    with pytest.raises(StorageError, match=f"cannot change {next(iter(changes))}"):
        typed(replace(LONGER, **changes), runs, "branch", resume=str(runs / FINISHED), branch=True)


def test_a_branch_has_at_least_one_epoch_to_train(runs: Path):
    with pytest.raises(StorageError, match="--epochs 3 or more"):
        typed(replace(PLAIN, seed=1), runs, "branch", resume=str(runs / FINISHED), branch=True)


def test_an_early_stopped_run_is_gone_on_with_in_a_branch(tmp_path: Path):
    recipe = small_recipe(epochs=9, early_stop=1, optim=OptimConfig(lr=1e-9, momentum=0.0))
    typed(recipe, tmp_path)
    faster: Recipe = replace(recipe, early_stop=0, epochs=4, optim=OptimConfig(lr=0.1, momentum=0.9))
    typed(faster, tmp_path, "branch", resume=str(tmp_path / "run"), branch=True)
    assert rows_in(tmp_path / "branch")[-1]["epoch"] == 4


def test_a_killed_branch_goes_on_as_one_that_was_not(runs: Path):
    changed = replace(PLAIN, epochs=4, **CHANGES["average on"])
    words: dict[str, Any] = {"resume": str(runs / FINISHED), "branch": True}
    typed(changed, runs, "whole", **words)
    with pytest.raises(Killed):
        typed(changed, runs, "killed", **words, listen=killed_at(11))
    typed(changed, runs, "killed", **words)
    assert_same_end(runs / "killed", runs / "whole")


def test_an_average_that_is_switched_on_after_the_last_step_of_an_epoch_is_of_the_net_that_was_trained(tmp_path: Path):
    """That epoch is measured before another step would have copied the weights into the average."""
    recipe = replace(PLAIN, epochs=3)
    with pytest.raises(Killed):
        typed(recipe, tmp_path, checkpoint_steps=3, listen=killed_at(3))
    assert progress_of(tmp_path / "run")["epoch_step"] == 3
    typed(replace(recipe, ema_decay=0.5), tmp_path, "branch", resume=str(tmp_path / "run"), branch=True)
    typed(recipe, tmp_path, "whole")
    assert rows_in(tmp_path / "branch")[3] == rows_in(tmp_path / "whole")[3]
