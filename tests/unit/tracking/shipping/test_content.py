"""W&B's rows: each step once, in order, the same whoever ships and wherever he begins."""

import math
import re
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distcifar.tracking.shipping.content import (
    EVERY_STEP,
    METRICS,
    RowMerger,
    epoch_values,
    is_shipped,
    run_config,
    shipped_rows,
    summary_values,
)

SPECIAL = [math.nan, math.inf, -math.inf, None, "words", True, [1.0], {"a": 1}]


def step_row(step: int, per_epoch: int, **values: Any) -> dict[str, Any]:
    epoch, done = divmod(step - 1, per_epoch)
    found = {"kind": "step", "step": step, "epoch": epoch + (done + 1) / per_epoch, "train/loss": 1 / step}
    return {**found, "train/lr": 0.1 / step, **values}


def epoch_row(epoch: int, per_epoch: int, **values: Any) -> dict[str, Any]:
    found = {"kind": "epoch", "step": epoch * per_epoch, "epoch": epoch, "train/loss": 2.0, "train/accuracy": 0.5}
    return {**found, "train/lr": 7.0, "validation/loss": 3.0, "best_epoch": 1, "seconds": 1.5, **values}


def journal(steps: int, per_epoch: int, first: int = 1) -> list[dict[str, Any]]:
    rows = []
    for step in range(first, steps + 1):
        rows.append(step_row(step, per_epoch))
        if step % per_epoch == 0:
            rows.append(epoch_row(step // per_epoch, per_epoch))
    return rows


RUNS = st.builds(journal, st.integers(0, 80), st.integers(1, 9))


@given(RUNS)
def test_each_step_is_there_once_and_steps_increase(rows: list[dict[str, Any]]):
    steps = [step for step, _ in shipped_rows(rows)]
    assert steps == [row["step"] for row in rows if row["kind"] == "step"]


@given(RUNS, st.data())
def test_a_row_never_changes_by_what_comes_after_it(rows: list[dict[str, Any]], data: st.DataObject):
    cut = data.draw(st.integers(0, len(rows)))
    whole, beginning = list(shipped_rows(rows)), list(shipped_rows(rows[:cut]))
    assert beginning == whole[: len(beginning)]
    assert len(beginning) >= sum(row["kind"] == "step" for row in rows[:cut]) - 1  # one may wait for its epoch


@given(RUNS, st.data())
def test_who_begins_anew_at_any_place_sends_the_same_rows(rows: list[dict[str, Any]], data: st.DataObject):
    there: dict[int, dict[str, Any]] = {}
    ends = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=4)))
    for end in [*ends, len(rows)]:  # each shipper reads from the start, sends what is not there, and is killed
        last = max(there, default=-1)
        there |= {step: values for step, values in shipped_rows(rows[:end]) if step > last}
    assert list(there.items()) == list(shipped_rows(rows))


def test_the_row_of_an_epoch_goes_into_that_of_its_last_step_under_names_of_its_own():
    rows = [step_row(3, 3), epoch_row(1, 3)]
    assert list(shipped_rows(rows)) == [
        (
            3,
            {
                "step": 3,
                "epoch": 1,
                "train/loss": 1 / 3,
                "train/lr": 0.1 / 3,
                "epoch/train/loss": 2.0,
                "epoch/train/accuracy": 0.5,
                "validation/loss": 3.0,
                "best_epoch": 1,
                "seconds": 1.5,
            },
        )
    ]


def test_an_epoch_without_the_row_of_its_last_step_is_a_row_of_its_own():
    step, values = next(shipped_rows([epoch_row(2, 5)]))
    assert (step, values["step"], values["epoch"]) == (10, 10, 2)
    assert "train/loss" not in values


def test_the_last_step_of_an_epoch_waits_for_the_epoch():
    merger = RowMerger()
    assert list(merger.add(step_row(4, 4))) == []
    assert [step for step, _ in merger.add(epoch_row(1, 4))] == [4]


@given(st.integers(1, 4000), st.integers(1, 4000))
def test_only_the_last_step_of_an_epoch_waits_however_long_an_epoch_is(step: int, per_epoch: int):
    waits = not list(RowMerger().add(step_row(step, per_epoch)))
    assert waits == (step % per_epoch == 0)


@given(st.sampled_from(SPECIAL), st.sampled_from(["train/loss", "train/grad_norm", "anything"]))
def test_what_is_no_finite_number_is_left_out_and_its_row_stays(value: Any, name: str):
    rows = [step_row(1, 2, **{name: value}), step_row(2, 2, **{name: value}), epoch_row(1, 2, **{name: value})]
    found = dict(shipped_rows(rows))
    assert set(found) == {1, 2}
    assert name not in found[1]
    assert name not in found[2]
    assert f"epoch/{name}" not in found[2]
    assert all(math.isfinite(number) for values in found.values() for number in values.values())


def test_past_a_hundred_thousand_steps_each_tenth_is_sent_and_each_epoch():
    first = EVERY_STEP - 10
    rows = [row for row in journal(EVERY_STEP + 100, 33, first=first)]
    found = dict(shipped_rows(rows))
    late = [step for step in found if step > EVERY_STEP]
    assert [step for step in found if step <= EVERY_STEP] == list(range(first, EVERY_STEP + 1))
    assert late == [s for s in range(EVERY_STEP + 1, EVERY_STEP + 101) if s % 10 == 0 or s % 33 == 0]
    epochs = [step for step, values in found.items() if "seconds" in values]
    assert epochs == [step for step in range(first, EVERY_STEP + 101) if step % 33 == 0]
    assert all("train/loss" in found[step] for step in epochs)


@given(st.integers(1, 10**9))
def test_whether_a_step_is_sent_depends_on_nothing_but_its_number(step: int):
    assert is_shipped(step) == (step <= 100_000 or str(step).endswith("0"))


def test_hardware_is_asked_for_once_for_each_row_that_goes_out():
    asked = []

    def hardware(step: int) -> dict[str, float]:
        asked.append(step)
        return {"hardware/rank0/cpu": float(step)}

    merger = RowMerger(hardware)
    found = [row for given in journal(7, 3) for row in merger.add(given)]
    assert asked == list(range(1, 8))
    assert all(values["hardware/rank0/cpu"] == step for step, values in found)


def test_the_names_of_an_epoch_never_clash_with_those_of_a_step():
    shared = {"step", "epoch"}
    assert epoch_values(epoch_row(1, 3)).keys() & (step_row(3, 3).keys() - {"kind"}) == shared


def test_every_metric_of_a_row_is_drawn_over_steps_or_epochs():
    patterns = [re.compile(name.replace("*", ".*")) for name, _, _ in METRICS]
    for _, values in shipped_rows(journal(6, 3)):
        for name in values.keys() - {"step", "epoch"}:
            assert any(pattern.fullmatch(name) for pattern in patterns), name
    names = [name for name, _, _ in METRICS]
    assert len(set(names)) == len(names)
    assert {axis for _, axis, _ in METRICS} == {"step", "epoch"}


def test_rows_come_in_the_order_of_their_steps_over_a_whole_run():
    steps = [step for step, _ in shipped_rows(journal(500, 7))]
    assert all(before < after for before, after in pairwise(steps))


def test_the_config_is_the_recipe_and_the_facts_under_run():
    assert run_config({"epochs": 2, "optim": {"lr": 0.1}}, {"data_digest": "d"}) == {
        "epochs": 2,
        "optim": {"lr": 0.1},
        "run": {"data_digest": "d"},
    }


@pytest.mark.parametrize("loss", [0.5, None])
def test_the_summary_has_plain_values_and_each_class(loss: float | None):
    summary = {
        "recipe": "debug",
        "test_accuracy": 0.75,
        "best_metric": None,
        "steps": 12,
        "per_class_accuracy": {"猫": 0.5, "dog": 1.0},
        "confusion": [[1, 2], [3, 4]],
        **({} if loss is None else {"test_loss": loss}),
    }
    assert summary_values(summary) == {
        "recipe": "debug",
        "steps": 12,
        "test/accuracy": 0.75,
        **({} if loss is None else {"test/loss": loss}),
        "test/per_class/猫": 0.5,
        "test/per_class/dog": 1.0,
    }


@given(st.sampled_from([math.nan, math.inf, -math.inf]))
def test_the_summary_holds_no_number_that_is_none(value: float):
    found = summary_values({"test_loss": value, "best_metric": value, "per_class_accuracy": {}})
    assert not [number for number in found.values() if isinstance(number, float) and not math.isfinite(number)]
