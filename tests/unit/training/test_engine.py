"""fit(): what it yields, when it stops, in which mode it trains; the same numbers on one rank and on several."""

import copy
import json
import math
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from distcifar.config import OptimConfig, ScheduleConfig, Stage
from distcifar.errors import DistcifarError, DivergenceError
from distcifar.training.evaluate import evaluate
from distcifar.training.reports import EpochReport, FitOptions, Pace, StepReport
from distcifar.training.summary import summarise
from tests.support import (
    ALONE_STEPS,
    DIVERGING,
    NORM_CNN,
    ONE,
    RANK_RECIPES,
    SPLITS,
    differing_tensors,
    fresh,
    reports,
    rows_of,
    run_ranks,
    small_recipe,
    train,
    train_alone,
    trained_on_rank,
)

NORM_RECIPE = small_recipe(model=NORM_CNN, optim=OptimConfig(lr=0.05))


def steps_and_epochs(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    return [r for r in rows if r["kind"] == "step"], [r for r in rows if r["kind"] == "epoch"]


# What is yielded


def test_a_row_for_each_step_and_each_epoch_numbered_from_one():
    state, data = fresh(small_recipe(epochs=2))
    steps, epochs = steps_and_epochs(train(state, data))
    assert [row["step"] for row in steps] == [1, 2, 3, 4, 5, 6]
    assert [row["epoch"] for row in steps] == pytest.approx([1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2])
    assert [(row["epoch"], row["step"]) for row in epochs] == [(1, 3), (2, 6)]
    assert state.progress.outcome == "finished"
    assert list(reports(state, data)) == [], "a finished run has nothing more to do"


def test_the_epochs_train_loss_is_the_mean_over_samples_and_not_over_steps():
    state, data = fresh(small_recipe(epochs=1))
    steps, (epoch,) = steps_and_epochs(train(state, data))
    by_step = [row["train/loss"] for row in steps]
    mean = (16 * by_step[0] + 16 * by_step[1] + 8 * by_step[2]) / 40
    assert epoch["train/loss"] == pytest.approx(mean, rel=1e-6)
    assert epoch["train/loss"] != pytest.approx(sum(by_step) / 3, rel=1e-6)


@pytest.mark.parametrize("pace", [Pace(steps=3), Pace(steps=100), Pace(math.inf)])
def test_how_often_steps_are_reported_changes_no_row(pace: Pace):
    each, data = fresh(NORM_RECIPE)
    rows = train(each, data)
    some, data = fresh(NORM_RECIPE)
    assert train(some, data, options=FitOptions(pace=pace)) == rows
    assert differing_tensors(some.tensors(), each.tensors()) == []


def test_a_checkpoint_is_asked_for_at_every_multiple_of_its_steps():
    state, data = fresh(small_recipe(epochs=3))
    options = FitOptions(pace=Pace(math.inf), checkpoint_steps=4)
    due = [r.rows[-1]["step"] for r in reports(state, data, options=options) if isinstance(r, StepReport) and r.save]
    assert due == [4, 8]


def test_a_wish_to_stop_ends_the_run_at_the_next_report_and_asks_for_a_checkpoint():
    state, data = fresh(small_recipe(epochs=5))
    options = FitOptions(should_stop=lambda: state.progress.step == 4)
    *_, last = reports(state, data, options=options)
    assert isinstance(last, StepReport)
    assert (last.stopping, last.save, state.progress.step) == (True, True, 4)
    assert state.progress.outcome == ""


@pytest.mark.parametrize("taken", [1, 3, 4, 6])  # within an epoch, before and after it is measured, in the next
def test_a_caller_may_break_out_and_go_on_with_a_new_fit(taken: int):
    whole, data = fresh(NORM_RECIPE)
    rows = train(whole, data)
    state, data = fresh(NORM_RECIPE)
    first = [row for report in islice(reports(state, data), taken) for row in rows_of(report)]
    assert first + train(state, data) == rows
    assert differing_tensors(state.tensors(), whole.tensors()) == []


def test_what_the_caller_does_between_reports_is_not_counted_as_training():
    """Saving, logging and drawing: `seconds` and images/s are of training and evaluation."""
    state, data = fresh(small_recipe(epochs=1))
    for _ in reports(state, data):
        time.sleep(0.25)
    assert state.progress.seconds < 0.25


def test_an_epoch_report_gives_ray_numbers_only():
    state, data = fresh(small_recipe(epochs=1))
    report = next(r for r in reports(state, data) if isinstance(r, EpochReport))
    assert {"epoch", "step", "train/loss", "validation/accuracy"} <= report.metrics().keys()
    assert all(isinstance(value, int | float) for value in report.metrics().values())


def test_the_rate_of_each_step_is_the_stages_rate_times_its_schedule():
    recipe = small_recipe(
        epochs=2,
        schedule=ScheduleConfig(name="cosine"),
        optim=OptimConfig(lr=0.08, head_lr_factor=10),
        then=(Stage(epochs=1, lr=0.3), Stage(epochs=2, lr=0.1, schedule=ScheduleConfig(name="exponential", gamma=0.5))),
    )
    state, data = fresh(recipe)
    rates, used = [], []
    for report in reports(state, data):
        if isinstance(report, StepReport):
            rates.append(report.rows[0]["train/lr"])
            used.append([group["lr"] for group in state.optimizers[0].param_groups])
    expected = [rate for rate in (0.08, 0.04, 0.3, 0.1, 0.05) for _ in range(3)]
    assert rates == pytest.approx(expected)
    assert used == [pytest.approx([rate, 10 * rate]) for rate in expected]


def test_a_wish_to_stop_before_the_first_step_is_heard_and_nothing_is_trained():
    state, data = fresh(small_recipe())
    before = {name: value.clone() for name, value in state.tensors().items()}
    (report,) = reports(state, data, options=FitOptions(should_stop=lambda: True))
    assert isinstance(report, StepReport)
    assert (report.rows, report.save, report.stopping) == ([], True, True)
    assert differing_tensors(state.tensors(), before) == []


@pytest.mark.parametrize("batch", [0, 1, 2])
def test_a_wish_to_stop_inside_an_evaluation_leaves_the_epoch_to_the_next_start(batch: int):
    whole, data = fresh(NORM_RECIPE)
    rows = train(whole, data)
    state, data = fresh(NORM_RECIPE)
    where: list[tuple[str, int]] = []
    options = FitOptions(should_stop=lambda: ("evaluate", batch) in where, on_stage=lambda *place: where.append(place))
    first = train(state, data, options=options)
    assert (state.progress.step, state.progress.epoch, state.progress.epoch_step) == (3, 0, 3)
    assert where[-1] == ("evaluate", batch), "it is heard before the next batch"
    assert first + train(state, data) == rows
    assert differing_tensors(state.tensors(), whole.tensors()) == []


def test_a_wish_to_stop_inside_the_final_measurement_gives_no_summary():
    state, data = fresh(small_recipe(epochs=1))
    train(state, data)
    assert summarise(state, data, ONE, interrupted=lambda batch, world: batch == 1) is None
    clocks = {"seconds": 0, "images_per_s": 0}
    later = summarise(state, data, ONE, interrupted=lambda batch, world: False)
    assert later.summary | clocks == summarise(state, data, ONE).summary | clocks


def test_each_stage_of_a_round_is_told_with_its_step():
    state, data = fresh(small_recipe(epochs=1))
    told: list[tuple[str, int]] = []
    train(state, data, options=FitOptions(on_stage=lambda *place: told.append(place)))
    round_ = [place for step in range(3) for place in (("data", step), ("step", step), ("report", step + 1))]
    assert told == [*round_, ("data", 3), ("evaluate", 0), ("evaluate", 1), ("evaluate", 2)]


# Modes


class Modes(nn.Module):
    """Notes in which mode each forward pass finds a Dropout, a BatchNorm and the whole net."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.seen: list[set[bool]] = []
        net.register_forward_pre_hook(lambda module, _: self.seen.append({m.training for m in module.modules()}))


def modes_of(recipe, **sizes: int) -> list[set[bool]]:
    state, data = fresh(recipe, **sizes)
    modes = Modes(state.model)
    train(state, data)
    return modes.seen


TRAINS, EVALUATES = {True}, {False}
EPOCH = [TRAINS] * 3 + [EVALUATES] * 3  # 40 images in batches of 16, 24 validation images in batches of 10


def test_every_epoch_trains_in_training_mode_and_evaluates_in_evaluation_mode():
    assert modes_of(small_recipe(model=NORM_CNN, epochs=3)) == EPOCH * 3


def test_the_eval_mode_bug_leaves_training_mode_after_the_first_epoch():
    """Row R18: model.train() stood before the loop over epochs."""
    assert (
        modes_of(small_recipe(model=NORM_CNN, epochs=3, eval_mode_after_first_epoch=True))
        == EPOCH + 2 * [EVALUATES] * 6
    )


def test_the_eval_mode_bug_changes_numbers_from_the_second_epoch_on_and_freezes_the_statistics():
    healthy, data = fresh(NORM_RECIPE)
    healthy_rows = train(healthy, data)
    ill, data = fresh(replace(NORM_RECIPE, eval_mode_after_first_epoch=True))
    ill_rows, statistics = [], []
    for report in reports(ill, data):
        ill_rows += rows_of(report)
        if isinstance(report, EpochReport):
            statistics.append({name: b.clone() for name, b in ill.model.named_buffers()})
    assert ill_rows[:4] == healthy_rows[:4], "the first epoch is the same"
    assert all(a["train/loss"] != b["train/loss"] for a, b in zip(ill_rows[4:], healthy_rows[4:], strict=True))
    assert differing_tensors(statistics[0], statistics[1]) == []
    assert not torch.equal(healthy.model.body[1].running_mean, ill.model.body[1].running_mean)


@pytest.mark.parametrize("faithful", [False, True])
def test_a_caller_that_changes_the_mode_between_steps_is_found_out(faithful: bool):
    state, data = fresh(replace(NORM_RECIPE, eval_mode_after_first_epoch=faithful))
    run = reports(state, data)
    for _ in range(6 if faithful else 1):  # into the second epoch, whose mode is the other one there
        next(run)
    state.model.train(not state.model.training)
    with pytest.raises(RuntimeError, match="mode was changed"):
        next(run)


def test_a_caller_that_changes_the_mode_of_a_part_is_found_out():
    state, data = fresh(NORM_RECIPE)
    run = reports(state, data)
    next(run)
    next(module for module in state.model.modules() if isinstance(module, torch.nn.BatchNorm2d)).eval()
    with pytest.raises(RuntimeError, match="mode was changed"):
        next(run)


def test_frozen_norms_stay_in_evaluation_mode_and_keep_their_statistics():
    """freeze_bn_stats on a small net: the torchvision ones, for which it is meant, take minutes here."""
    recipe = small_recipe(model=NORM_CNN)
    state, data = fresh(recipe)
    frozen = copy.copy(recipe.model)
    object.__setattr__(frozen, "freeze", True)  # without `pretrained`, which a recipe would ask for
    object.__setattr__(frozen, "freeze_bn_stats", True)
    state.recipe = replace(recipe)
    object.__setattr__(state.recipe, "model", frozen)
    before = {name: b.clone() for name, b in state.model.named_buffers()}
    train(state, data)
    assert differing_tensors(dict(state.model.named_buffers()), before) == []


# Divergence


def diverging_run(**options: Any) -> tuple[DivergenceError, int, list[dict[str, Any]]]:
    state, data = fresh(DIVERGING)
    rows: list[dict[str, Any]] = []
    with pytest.raises(DivergenceError) as caught:
        for report in reports(state, data, options=FitOptions(**options)):
            rows += rows_of(report)
    return caught.value, state.progress.step, rows


def test_divergence_names_step_epoch_rate_and_remedy():
    error, step, rows = diverging_run()
    assert f"At step {step} (epoch {(step - 1) // 3 + 1})" in error.found
    assert "the learning rate was 100" in error.found
    assert "--optim.lr 10" in error.remedy
    assert all(math.isfinite(row["train/loss"]) for row in rows), "no row of NaN is given out"
    assert [r["step"] for r in rows if r["kind"] == "step"] == list(range(1, step))


def test_divergence_between_reports_is_told_with_its_own_step():
    _, step, _ = diverging_run()
    error, stopped, _ = diverging_run(pace=Pace(steps=3))
    assert f"At step {step} " in error.found
    assert step <= stopped <= step + 2


@pytest.mark.parametrize("steps", [1, 3])
def test_an_infinite_gradient_is_divergence_though_the_loss_is_finite(steps: int):
    """It is told at its own step, and not at the next one, when the weights have gone."""
    state, data = fresh(small_recipe())
    state.model.head.weight.register_hook(lambda g: g * math.inf if state.progress.step == 1 else g)
    with pytest.raises(DivergenceError, match="At step 2 "):
        train(state, data, options=FitOptions(pace=Pace(steps=steps)))


def test_with_fp16_an_infinite_gradient_is_left_to_the_loss_scaler():
    state, data = fresh(small_recipe(precision="fp16"))
    state.model.head.weight.register_hook(lambda g: g * math.inf if state.progress.step == 1 else g)
    train(state, data)
    assert state.progress.outcome == "finished"
    assert all(torch.isfinite(p).all() for p in state.model.parameters())


def test_weights_of_nan_after_the_last_step_are_not_a_finished_run():
    """The last step of a run has no next one whose loss would tell."""
    state, data = fresh(small_recipe(epochs=1))
    with pytest.raises(DivergenceError):
        for report in reports(state, data):
            if isinstance(report, StepReport) and state.progress.step == 3:
                with torch.no_grad():
                    state.model.head.weight.fill_(math.nan)  # what a last update by far too long leaves


# Choice, early stopping, averages, the end


def test_the_best_weights_are_those_that_were_measured_best():
    state, data = fresh(small_recipe(epochs=6, optim=OptimConfig(lr=0.3)))
    kept: dict[int, dict[str, torch.Tensor]] = {}
    accuracy: dict[int, float] = {}
    for report in reports(state, data):
        if isinstance(report, EpochReport):
            kept[report.row["epoch"]] = copy.deepcopy(state.model.state_dict())
            accuracy[report.row["epoch"]] = report.row["validation/accuracy"]
    best = max(accuracy, key=lambda epoch: (accuracy[epoch], -epoch))
    assert 1 <= best < 6, "this run should not be at its best at the end"
    assert state.progress.best_epoch == best
    assert differing_tensors(state.chosen_weights(), kept[best]) == []


def test_chosen_on_test_the_rows_say_test_and_validation_is_not_read():
    state, data = fresh(small_recipe(epochs=1, select_on="test"))
    _, (epoch,) = steps_and_epochs(train(state, data))
    again = evaluate(state.model, data.loaders.test, ONE, num_classes=4, precision="fp32", views="none")
    assert epoch["test/accuracy"] == again.accuracy
    assert epoch["test/loss"] == again.loss
    assert "validation/accuracy" not in epoch


def test_the_last_epoch_can_be_taken_without_any_validation_images():
    state, data = fresh(
        small_recipe(epochs=2, select_on="last", data=replace(small_recipe().data, validation=0)), validation=0
    )
    _, epochs = steps_and_epochs(train(state, data))
    assert [row["best_epoch"] for row in epochs] == [1, 2]
    assert not any(key.startswith(("validation", "test")) for row in epochs for key in row)


def test_a_run_without_progress_stops_early():
    recipe = small_recipe(epochs=50, early_stop=2, optim=OptimConfig(lr=1e-9, momentum=0.0))
    state, data = fresh(recipe)
    _, epochs = steps_and_epochs(train(state, data))
    assert len(epochs) == 3
    assert state.progress.outcome == "early stop"


def test_the_average_is_what_is_measured_and_chosen():
    state, data = fresh(small_recipe(model=NORM_CNN, ema_decay=0.9, optim=OptimConfig(lr=0.1)))
    for report in reports(state, data):
        if isinstance(report, EpochReport):
            settings = {"num_classes": 4, "precision": "fp32", "views": "none"}
            average = evaluate(state.ema.module, data.loaders.validation, ONE, **settings)
            plain = evaluate(state.model, data.loaders.validation, ONE, **settings)
            assert report.row["validation/loss"] == average.loss != plain.loss


def test_a_stage_goes_on_from_the_best_weights_and_not_from_the_last():
    """With a rate too small to move anything, the second stage's weights are those it started from."""
    recipe = small_recipe(epochs=6, optim=OptimConfig(lr=0.3), then=(Stage(epochs=1, lr=1e-12),))
    state, data = fresh(recipe)
    train(state, data)
    assert state.progress.best_epoch < 6
    for name, value in state.model.state_dict().items():
        torch.testing.assert_close(value, state.best[name], rtol=0, atol=1e-8)


def test_the_summary_measures_the_test_split_with_the_best_weights():
    state, data = fresh(small_recipe(epochs=6, optim=OptimConfig(lr=0.3), tta="flip"))
    train(state, data)
    best = copy.deepcopy(state.model)
    best.load_state_dict(state.best)
    last = copy.deepcopy(state.model)
    summary = summarise(state, data, ONE).summary
    settings = {"num_classes": 4, "precision": "fp32", "views": "flip"}
    assert summary["test_loss"] == evaluate(best, data.loaders.test, ONE, **settings).loss
    assert summary["test_loss"] != evaluate(last, data.loaders.test, ONE, **settings).loss
    assert sum(map(sum, summary["confusion"])) == 17
    assert (summary["epochs"], summary["steps"], summary["outcome"]) == (6, 18, "finished")
    assert summary["selected_on"] == "validation"
    json.dumps(summary, allow_nan=False)  # no NaN: summary.json is read by more than Python


def test_an_epoch_of_no_step_is_refused_and_not_reported_as_training():
    """drop_last with fewer images than a batch: nothing would ever be learnt, epoch after epoch."""
    state, data = fresh(small_recipe(batch_size=64, drop_last=True))
    with pytest.raises(DistcifarError, match="batch"):
        train(state, data)


# Several ranks

MUON = 1e-3  # it rounds gradients to bf16, where another order of adding now and then gives the neighbouring number


@pytest.fixture(scope="module", params=[2, 3])
def ranks(request, tmp_path_factory) -> list[dict[str, Any]]:
    """What `trained_on_rank` returns on each of two and of three gloo ranks."""
    folder: Path = tmp_path_factory.mktemp(f"ranks-{request.param}")
    train_alone(folder)
    return run_ranks(trained_on_rank, request.param, folder, folder)


def assert_close(
    rank: dict[str, Any], tensors: dict[str, torch.Tensor], rows: list[dict[str, Any]], band: float
) -> None:
    """A rank's weights and rows are these up to the order of adding."""
    for key, value in tensors.items():
        if key != "tally":  # of one rank; the rows have it of all
            torch.testing.assert_close(rank["tensors"][key], value, rtol=0, atol=band, msg=key)
    for mine, single in zip(rank["rows"], rows, strict=True):
        assert mine.keys() == single.keys()
        for key, value in single.items():
            assert mine[key] == (pytest.approx(value, abs=band) if isinstance(value, float) else value), key


@pytest.mark.parametrize("name", RANK_RECIPES)
def test_several_ranks_give_the_single_ranks_weights_and_rows(ranks: list[dict[str, Any]], name: str):
    """Contract 3, with last batches of one image: all ranks but one have an empty share there."""
    state, data = fresh(RANK_RECIPES[name], **SPLITS)
    rows = train(state, data)
    assert len(rows) == (4 + 3 + 3 if name == "hard" else 4 + 4)  # each epoch's steps and its own
    for rank in ranks:
        assert_close(rank[name], state.tensors(), rows, MUON if name == "mixed" else 1e-5)


def test_several_ranks_go_on_with_what_one_rank_has_begun(ranks: list[dict[str, Any]]):
    """Contract 1: a run stops at any step and goes on at any world size, here within an epoch."""
    state, data = fresh(RANK_RECIPES["mixed"], **SPLITS)
    rows = train(state, data)
    rest = rows[[row["step"] for row in rows].index(ALONE_STEPS) + 1 :]
    assert len(rest) == 3
    for rank in ranks:
        assert_close(rank["after one rank"], state.tensors(), rest, MUON)


@pytest.mark.parametrize("name", RANK_RECIPES)
def test_all_ranks_end_with_the_same_bits(ranks: list[dict[str, Any]], name: str):
    first = ranks[0][name]
    for other in ranks[1:]:
        assert set(differing_tensors(other[name]["tensors"], first["tensors"])) <= {"tally"}
        assert differing_tensors(other[name]["chosen"], first["chosen"]) == []
        assert other[name]["rows"] == first["rows"]


def test_a_wish_to_stop_on_one_rank_stops_all_at_the_same_step(ranks: list[dict[str, Any]]):
    assert [rank["stopped at"] for rank in ranks] == [(2, 2)] * len(ranks)


def test_divergence_is_raised_on_every_rank_with_the_same_words(ranks: list[dict[str, Any]]):
    assert len({rank["divergence"] for rank in ranks}) == 1
    assert "At step" in ranks[0]["divergence"]


def test_several_ranks_go_on_from_a_checkpoint_to_the_same_bits(ranks: list[dict[str, Any]]):
    """Contract 6 with BatchNorm, dropout, Adam and an average: what rank 0 saves continues all ranks.

    On three ranks the order in which an all-reduce adds up depends on a gradient's place in DDP's buckets, and
    DDP moves the gradients once, after the first backward pass of the process.
    """
    assert [rank["continued"]["tensors"] for rank in ranks] == [[]] * len(ranks)


def test_several_ranks_go_on_from_a_checkpoint_to_the_same_rows(ranks: list[dict[str, Any]]):
    """Also from within an epoch, whose sums so far lie on all ranks while rank 0 saves."""
    assert [rank["continued"]["rows"] for rank in ranks] == [[]] * len(ranks)
