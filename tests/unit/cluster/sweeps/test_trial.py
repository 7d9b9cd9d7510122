"""A trial, driven as Ray Tune drives it, without Ray: what is known is not trained, what is lost is trained again."""

import json
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import patch

import pytest
from ray.tune.result import TRIAL_INFO

from distcifar.cluster.sweeps import trial as trials
from distcifar.cluster.sweeps.search import Stopping
from distcifar.cluster.sweeps.training import KeptImages
from distcifar.cluster.sweeps.trial import TrialProcess
from distcifar.config import RunSpec
from distcifar.config.space import Space, ranged
from distcifar.config.sweep import SweepSpec
from distcifar.errors import DivergenceError, ResourceError, StorageError
from distcifar.sweep.folder import Results, Sweep, result_of, write_sweep
from distcifar.tracking.journal import read_events
from distcifar.tracking.rows import epoch_rows
from tests.support import small_data, small_recipe

EPOCHS = 3


@pytest.fixture
def sweep(tmp_path):
    recipe = replace(small_recipe(), epochs=EPOCHS)
    run = RunSpec(device="cpu", wandb="disabled", hang_seconds=0, keep_last=3)
    made = Sweep(tmp_path / "s", recipe, Space((ranged("optim.lr", 1e-3, 1),)), SweepSpec(), run, tmp_path, "d" * 64)
    write_sweep(made)
    return made


@pytest.fixture(autouse=True)
def small_images():
    with patch.object(KeptImages, "__call__", lambda self, job, world: small_data(job.recipe, world)):
        yield


def process(sweep, run="000", **fields):
    info = SimpleNamespace(trial_name=run, trial_id=run, trial_resources=None, experiment_name="")
    common = {"sweep": str(sweep.folder), "results": "results.jsonl", "measure": False, "cpus": 1, "run": run}
    return TrialProcess({**common, "seed": 0, **fields, TRIAL_INFO: info})


def steps(trial, count=EPOCHS):
    return [trial.step() for _ in range(count)]


def told(results, sweep):
    for result in results:
        Results(sweep.folder).add(result_of(result))


def losses(results):
    return [(result["epoch"], result["loss"], result["accuracy"], result["done"]) for result in results]


def no_training(*_):
    raise AssertionError("trained what is known")


def test_a_step_is_an_epoch_and_the_last_one_ends_it_without_the_test_images(sweep):
    trial = process(sweep)
    found = steps(trial)
    trial.cleanup()
    assert [result["epoch"] for result in found] == [1, 2, 3]
    assert [result["done"] for result in found] == [False, False, True]
    assert [result["score"] for result in found] == [max(r["accuracy"] for r in found[: i + 1]) for i in range(3)]
    assert not (sweep.trials / "000" / "summary.json").exists()


def test_what_is_in_the_folder_is_answered_and_not_trained(sweep):
    before = steps(process(sweep))
    told(before, sweep)
    with patch.object(trials, "epochs_of", no_training):
        assert losses(steps(process(sweep))) == losses(before)


def test_a_process_that_dies_is_followed_by_one_that_goes_on(sweep):
    whole = steps(process(sweep, "001"))
    first = process(sweep)
    told(steps(first, 1), sweep)
    first.cleanup()
    second = process(sweep)
    assert losses(steps(second)) == losses(whole)
    assert [event["step"] for event in read_events(sweep.trials / "000") if event["kind"] == "continue"] == [
        whole[0]["step"]
    ]


def test_an_epoch_that_was_saved_and_not_told_is_not_trained_again(sweep):
    first = process(sweep)
    before = steps(first, 2)  # of which nobody has heard
    first.cleanup()
    with patch.object(trials, "epochs_of", no_training):
        assert losses(steps(process(sweep), 2)) == losses(before)


def test_one_process_trains_one_trial_after_the_other(sweep):
    alone = [losses(steps(process(sweep, run, **{"optim.lr": rate}))) for run, rate in (("001", 0.5), ("002", 0.01))]
    trial = process(sweep, "003", **{"optim.lr": 0.5})
    found = [losses(steps(trial))]
    trial._trial_info.trial_name = "004"
    assert trial.reset_config(trial.config | {"run": "004", "optim.lr": 0.01})
    trial.config["optim.lr"] = 0.01
    found.append(losses(steps(trial)))
    assert found == alone
    assert found[0] != found[1]


@pytest.mark.parametrize("fields", [{"optim.lr": -1.0}, {"augment.mixup": 0.2, "augment.cutmix": 0.2}])
def test_a_point_that_is_no_recipe_fails_its_trial_with_the_reason(sweep, fields):
    found = process(sweep, **fields).step()
    assert found["done"]
    assert found["problem"]
    assert found["accuracy"] == 0
    assert not (sweep.trials / "000").exists()


def ending(value):
    def epochs(*_):
        return value
        yield

    return epochs


def test_a_training_that_diverges_is_not_tried_again(sweep):
    with patch.object(trials, "epochs_of", ending({"error": DivergenceError("The loss is nan", "", "")})):
        found = process(sweep).step()
    assert (found["done"], found["problem"], found["epoch"]) == (True, "The loss is nan", 1)


def test_what_may_go_away_is_raised_for_tune_to_try_again(sweep):
    busy = ending({"error": ResourceError("The cluster has 1 CPU", "", "")})
    with patch.object(trials, "epochs_of", busy), pytest.raises(RuntimeError, match="has 1 CPU"):
        process(sweep).step()


def test_a_disk_that_is_full_stops_the_search_and_is_no_result_of_the_trial(sweep):
    with patch.object(trials, "epochs_of", ending({"error": StorageError("The disk is full", "", "")})):
        found = process(sweep).step()
    assert (found["interrupted"], found["done"], found["unwritable"]) == (True, False, "The disk is full.")
    stopping = Stopping()
    assert not stopping("000", {})
    assert not stopping.stop_all()
    stopping("000", found)
    assert stopping.stop_all()


def test_early_stopping_ends_a_trial(sweep):
    with patch.object(trials, "epochs_of", ending({"stopped": 3})):
        found = process(sweep).step()
    assert found["done"]
    assert not found["interrupted"]


def exploited(sweep, tmp_path, rate):
    """Trial 001, which takes over 000's state after its first epoch with another rate."""
    donor = process(sweep, "000", **{"optim.lr": 0.1})
    told(steps(donor, 1), sweep)
    place = tmp_path / "tune"
    place.mkdir(exist_ok=True)
    donor.save_checkpoint(str(place))
    weak = process(sweep, "001", **{"optim.lr": rate})
    weak.load_checkpoint(str(place))
    return donor, weak, place


def test_pbt_goes_on_from_another_trials_state_with_its_own_rate(sweep, tmp_path):
    donor, weak, _ = exploited(sweep, tmp_path, 0.01)
    found = steps(weak, 2)
    folder = sweep.trials / found[0]["run"]
    assert found[0]["run"].startswith("001-e001-")
    assert [result["epoch"] for result in found] == [2, 3]
    assert [row["epoch"] for row in epoch_rows(folder)] == [1, 2, 3]
    assert json.loads((folder / "recipe.json").read_text())["optim"]["lr"] == 0.01
    assert epoch_rows(folder)[0] == epoch_rows(sweep.trials / "000")[0]
    other = steps(donor, 2)
    assert losses(other) != losses(found)


def test_pbt_finds_its_exchange_again_and_a_pause_is_none(sweep, tmp_path):
    _, weak, place = exploited(sweep, tmp_path, 0.01)
    found = steps(weak, 1)
    told(found, sweep)
    weak.save_checkpoint(str(place))
    paused = process(sweep, "001", **{"optim.lr": 0.01})
    paused.load_checkpoint(str(place))
    assert paused.step()["run"] == found[0]["run"]
    _, again, _ = exploited(sweep, tmp_path, 0.01)
    with patch.object(trials, "epochs_of", no_training):
        assert losses(steps(again, 1)) == losses(found)


def test_measuring_ends_the_run_and_is_done_once(sweep):
    told(steps(process(sweep, "c000-0")), sweep)
    first = process(sweep, "c000-0", measure=True).step()
    assert first["done"]
    assert json.loads((sweep.trials / "c000-0" / "summary.json").read_text())["test_accuracy"] == first["test_accuracy"]
    with patch.object(trials, "epochs_of", no_training):
        assert process(sweep, "c000-0", measure=True).step()["test_accuracy"] == first["test_accuracy"]
