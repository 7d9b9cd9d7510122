"""What came of a search: of results as lines, trials, an order, and what was saved."""

import json
import math
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distcifar.sweep.folder import Result
from distcifar.sweep.ranking import mean_and_error, ranking, savings, trials_of
from tests.unit.sweep.sweeps import made_up

EPOCHS = 4


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return made_up(tmp_path_factory.mktemp("ranking") / "a", trials=1, epochs=EPOCHS).sweep


def lines(trial, *accuracies, last="continue", run=None, first=1, best=0.0):
    """Results of consecutive epochs of one run; the last one with the decision `last`."""
    found = []
    for epoch, accuracy in enumerate(accuracies, start=first):
        best = max(best, accuracy)
        decision = last if epoch == first + len(accuracies) - 1 else "continue"
        found.append(Result(run or f"{trial:03d}", trial, epoch, accuracy, best, 1.0, 10.0 * epoch, decision))
    return found


def points(count):
    return {number: {"optim.lr": 0.1 / (number + 1)} for number in range(count)}


def test_states_are_told_by_epochs_decisions_and_failures(sweep):
    results = [
        *lines(0, 0.1, 0.3, 0.2, 0.25, last="stop"),  # tune stops who is through, too
        *lines(1, 0.1, last="stop"),
        *lines(2, 0.1, last="pause"),
        *lines(3, 0.1, 0.2, last="noop"),
        *lines(4, 0.5, 0.6),
        *lines(5, 0.4),
        Result("005", 5, 2, 0.0, 0.4, 0.0, 10.0, "failed", problem="nan at step 3"),
        Result("006", 6, 1, 0.0, 0.0, 0.0, 0.0, "failed", problem="no recipe"),
    ]
    trials = trials_of(sweep, results, points(6), failed={4, 7})
    assert [trial.state for trial in trials] == [
        "finished", "stopped", "paused", "running", "failed", "failed", "failed", "failed",
    ]  # fmt: skip
    assert trials[0].score == 0.3
    assert trials[0].curve == ((1, 0.1), (2, 0.3), (3, 0.2), (4, 0.25))
    assert (trials[0].epochs, trials[0].reached, trials[0].seconds) == (4, 4, 40.0)
    assert (trials[5].score, trials[5].curve, trials[5].problem) == (0.4, ((1, 0.4),), "nan at step 3")
    assert (trials[6].score, trials[6].epochs, trials[6].run) == (0.0, 0, "006")
    assert (trials[7].run, trials[7].curve, trials[7].point) == ("", (), {})
    json.dumps([asdict(trial) for trial in trials])


def test_of_a_chain_of_runs_the_last_one_counts_and_all_epochs(sweep):
    results = [
        *lines(0, 0.1, 0.2, 0.3, run="000"),
        *lines(1, 0.5, 0.6, run="001"),
        *lines(0, 0.7, 0.65, run="000-e002-1f2a", first=3, best=0.6),
    ]
    [trial, _] = trials_of(sweep, results, {0: {"optim.lr": 0.5}, 1: {}})
    assert trial.run == "000-e002-1f2a"
    assert trial.curve == ((1, 0.1), (2, 0.2), (3, 0.7), (4, 0.65)), "epoch 3 of the first run was given up"
    assert trial.epochs == 5
    assert trial.score == 0.7
    assert trial.state == "finished"
    assert trial.seconds == 30.0 + 40.0
    [trial, _] = trials_of(sweep, results[:-1], {})
    assert (trial.curve[-1], trial.reached, trial.state) == ((3, 0.7), 3, "running")
    taken_over = [*lines(0, 0.1, 0.2, 0.3), *lines(0, 0.4, run="000-e001-1f2a", first=2, best=0.3)]
    assert trials_of(sweep, taken_over, {})[0].curve == ((1, 0.1), (2, 0.4)), "epoch 3 is of a model that is given up"


def test_configurations_are_ordered_by_the_mean_of_their_seeds(sweep):
    sweep = replace(sweep, spec=replace(sweep.spec, seeds=2))
    results = [
        *lines(0, 0.9), *lines(1, 0.1),  # luck with one seed
        *lines(2, 0.6, 0.8), *lines(3, 0.6),  # one was trained longer: as equals
        *lines(4, 0.95), *lines(5, 0.9),  # failed, both
        *lines(6, 0.7), *lines(7, 0.99),  # the second failed
    ]  # fmt: skip
    rows = ranking(sweep, trials_of(sweep, results, points(8), failed={4, 5, 7}))
    assert [(row.place, row.group) for row in rows] == [(1, 3), (2, 1), (3, 0), (4, 2)]
    assert rows[0].trials == (6,)
    assert (rows[0].mean, rows[0].error) == (0.7, None)
    assert (rows[1].trials, rows[1].scores, rows[1].reached) == ((2, 3), (0.6, 0.6), 1)
    assert rows[2].mean == pytest.approx(0.5)
    assert rows[2].error == pytest.approx(0.4), "of 0.1 and 0.9: 0.5657 / sqrt(2)"
    assert rows[3].states == ("failed", "failed")
    json.dumps([asdict(row) for row in rows])


def test_of_equal_scores_the_longer_trained_comes_first(sweep):
    results = [*lines(0, 0.5), *lines(1, 0.4, 0.5, 0.3, 0.3), *lines(2, 0.3, 0.5), *lines(3, 0.2, 0.5)]
    assert [row.group for row in ranking(sweep, trials_of(sweep, results, points(4)))] == [1, 2, 3, 0]


def test_saved_is_what_was_not_trained(sweep):
    results = [*lines(0, 0.1, 0.2, 0.3, 0.4), *lines(1, 0.1, last="stop"), *lines(2, 0.1, last="stop")]
    found = savings(sweep, trials_of(sweep, results, points(3)))
    assert (found.trials, found.epochs, found.full, found.saved) == (3, 6, 12, 0.5)
    assert savings(sweep, []).saved == 0


@given(st.lists(st.floats(0, 1), min_size=2, max_size=9))
def test_the_standard_error_is_that_of_the_textbook(values):
    mean, error = mean_and_error(values)
    assert mean == pytest.approx(sum(values) / len(values), abs=1e-12)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    assert error == pytest.approx(math.sqrt(variance / len(values)), abs=1e-9)


@given(st.randoms(use_true_random=False))
def test_the_order_of_other_trials_lines_changes_nothing(sweep, generator):
    """Concurrent trials arrive in any order."""
    streams = [lines(0, 0.1, 0.2, 0.3), lines(1, 0.4, 0.2), lines(2, 0.3)]
    expected = trials_of(sweep, [line for stream in streams for line in stream], points(3))
    mixed, left = [], [list(stream) for stream in streams]
    while any(left):
        mixed.append(generator.choice([stream for stream in left if stream]).pop(0))
    assert trials_of(sweep, mixed, points(3)) == expected
