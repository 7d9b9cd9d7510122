"""Which fields decide: known truths are found, stopped trials are compared fairly, and little is not made much of."""

import logging
import random
import warnings
from collections import Counter
from dataclasses import replace

import pytest

from distcifar.config.domain import Domain
from distcifar.config.space import Dimension, chosen, only_if, ranged
from distcifar.sweep.importance import importance, standings
from distcifar.sweep.ranking import Trial, trials_of
from tests.unit.sweep.sweeps import FIELDS, made_up

TUPLES = chosen("model.hidden", (96,), (256,), (512, 256))


def of(found):
    trials = trials_of(found.sweep, found.results, found.points)
    return importance(found.sweep, trials), trials


def trial(number, *accuracies, **changes):
    base = Trial(number, "", {"optim.lr": 0.1}, len(accuracies), 0, "", "finished", tuple(enumerate(accuracies, 1)))
    return replace(base, **changes)


def test_what_decides_is_found_in_order(tmp_path):
    """Weights over three searches: the rate most, the batch next, a field that does nothing least."""
    shares, clear = Counter(), Counter()
    for seed in range(3):
        found, _ = of(made_up(tmp_path / str(seed), trials=100, seed=seed, fields=(*FIELDS, TUPLES), batch=0.1))
        assert sum(field.share for field in found.fields) == pytest.approx(1)
        assert found.configurations == 100
        for field in found.fields:
            shares[field.path] += field.share / 3
            clear[field.path] += field.clear
    assert [path for path, _ in shares.most_common(2)] == ["optim.lr", "batch_size"]
    assert clear["optim.lr"] == 3
    assert clear["batch_size"] >= 2
    others = ("model.dropout", "optim.name", "optim.momentum", "model.hidden")
    assert sum(clear[path] for path in others) <= 2, "of 12, one by chance"
    assert all(shares[path] < 0.1 for path in others)


def test_a_small_search_finds_the_rate_and_swears_to_little_else(tmp_path):
    firsts, clear = Counter(), Counter()
    for seed in range(6):
        found, _ = of(made_up(tmp_path / str(seed), trials=24, seed=100 + seed))
        firsts[found.fields[0].path] += 1
        clear.update(field.path for field in found.fields if field.clear)
    assert firsts["optim.lr"] >= 5
    assert sum(count for path, count in clear.items() if path not in ("optim.lr", "batch_size")) <= 3


def test_two_trials_are_compared_where_both_have_been():
    slow, fast = trial(0, 0.2, 0.5, 0.9), trial(1, 0.3, 0.4, 0.6)
    assert standings([slow, fast]) == [1.0, 0.0]
    stopped = trial(2, 0.25, state="stopped")
    assert standings([slow, fast, stopped]) == [0.5, 0.5, 0.5], (
        "it beats the slow one at epoch 1, and loses to the fast"
    )
    early_best = trial(3, 0.95, 0.1, 0.1)
    assert standings([slow, early_best]) == [0.0, 1.0], "the best so far counts"
    assert standings([slow, slow]) == [0.5, 0.5]
    diverged = trial(4, 0.99, state="failed", problem="nan")
    assert standings([slow, stopped, diverged]) == [0.5, 1.0, 0.0]


def test_longer_training_alone_is_no_merit(tmp_path):
    """Who is stopped is dealt out by chance here: then the field that says so must not seem to decide."""
    found = made_up(tmp_path / "a", trials=60, scheduler="none", fields=FIELDS[2:4], noise=0.02)
    generator = random.Random(0)
    cut = {number: generator.random() < 0.7 for number in found.points}
    points = {n: {**point, "optim.name": "adam" if cut[n] else "sgd"} for n, point in found.points.items()}
    results = [result for result in found.results if not cut[result.trial] or result.epoch <= 2]
    trials = trials_of(found.sweep, results, points)
    told = {field.path: field for field in importance(found.sweep, trials).fields}
    assert not told["optim.name"].clear
    scores = [trial.score for trial in trials if trial.point["optim.name"] == "adam"]
    assert max(scores) < min(trial.score for trial in trials if trial.point["optim.name"] == "sgd"), (
        "not by their scores"
    )


def test_seeds_of_a_configuration_count_once(tmp_path):
    found, trials = of(made_up(tmp_path / "a", trials=30, seeds=3))
    assert len(trials) == 90
    assert found.configurations == 30
    assert found.fields[0].path == "optim.lr"
    few, _ = of(made_up(tmp_path / "b", trials=5, seeds=3))
    assert few.fields == ()
    assert "5 configurations" in few.reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda trial: replace(trial, curve=((1, 0.1),)), "equally well"),
        (lambda trial: replace(trial, state="failed"), "0 configurations"),
        (lambda trial: replace(trial, curve=()), "0 configurations"),
        (lambda trial: replace(trial, point={"optim.lr": 0.1}), "same values"),
    ],
)
def test_where_nothing_can_be_said_it_says_so(tmp_path, change, reason):
    found = made_up(tmp_path / "a", trials=12)
    told = importance(found.sweep, [change(trial) for trial in trials_of(found.sweep, found.results, found.points)])
    assert told.fields == ()
    assert reason in told.reason


def test_divergence_tells_of_the_rate(tmp_path):
    """High rates bring no number at all; they count as the worst all the same."""
    found = made_up(tmp_path / "a", trials=40, fields=(*FIELDS[2:4], ranged("optim.lr", 1e-2, 1.0, log=True)), rate=0.0)
    trials = trials_of(found.sweep, found.results, found.points)
    high = [replace(t, state="failed", problem="nan") if t.point["optim.lr"] > 0.1 else t for t in trials]
    assert importance(found.sweep, high).fields[0].path == "optim.lr"
    assert importance(found.sweep, high).fields[0].clear
    assert not any(field.path == "optim.lr" and field.clear for field in importance(found.sweep, trials).fields)


def test_any_kind_of_field_is_taken(tmp_path):
    """Whole numbers, lists, truths, values beyond the domain (pbt), a condition that holds once, a single value."""
    fields = (
        *FIELDS[:1], TUPLES, chosen("optim.nesterov", True, False),
        Dimension(path="batch_size", domain=Domain(kind="int", low=16, high=64)),
        only_if(ranged("schedule.gamma", 0.1, 0.7), "schedule.name", "step"),
        chosen("model.dropout", 0.0),
    )  # fmt: skip
    found = made_up(tmp_path / "a", trials=8, fields=fields)
    points = {number: dict(point) for number, point in found.points.items()}
    points[0] |= {"optim.lr": 7.0, "model.hidden": (7,)}
    points[1] |= {"schedule.gamma": 0.5}
    told = importance(found.sweep, trials_of(found.sweep, found.results, points))
    assert sorted(field.path for field in told.fields) == sorted(dimension.path for dimension in fields[:-1])


def test_it_is_silent_and_the_same_each_time(tmp_path, caplog, capfd):
    found = made_up(tmp_path / "a", trials=12)
    with warnings.catch_warnings(), caplog.at_level(logging.DEBUG):
        warnings.simplefilter("error")
        assert of(found) == of(found)
    assert not [record for record in caplog.records if record.name.startswith("optuna")]
    assert capfd.readouterr() == ("", "")
