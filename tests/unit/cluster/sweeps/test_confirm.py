"""A confirmation whose runs fail, or that is stopped: neither is taken for the other, nor for a result."""

from dataclasses import asdict, replace

import pytest

from distcifar.cluster.sweeps import confirm as confirming
from distcifar.cluster.sweeps.confirm import confirm
from distcifar.cluster.sweeps.room import Room
from distcifar.cluster.sweeps.search import Ended
from distcifar.config.sweep import SweepSpec
from distcifar.sweep.folder import CONFIRMED, Result, Results
from distcifar.sweep.winner import ranked_trials
from tests.unit.sweep.sweeps import made_up

EPOCHS = 9


@pytest.fixture
def search(tmp_path):
    made = made_up(tmp_path / "s", trials=6)
    sweep = replace(made.sweep, spec=replace(made.sweep.spec, confirm="2x2"))
    return sweep, ranked_trials(sweep, [made.points.get(n, {}) for n in range(6)], over=True)[1]


def confirmed(search, monkeypatch, outcomes, *, stopped=(), said=None):
    """outcomes: run -> how it ends (an accuracy, or "failed" or "crashed"); stopped: which of the two passes are."""
    sweep, ranked = search
    passes = []

    def rerun(sweep, room, configs, told, announce, *, measure=False):
        passes.append([config["run"] for config in configs])
        results = Results(sweep.folder, CONFIRMED)
        if measure:
            return Ended(2 in stopped, {}, tuple({"run": run, "test_accuracy": 0.5} for run in passes[-1]))
        for run in passes[-1]:
            end = outcomes(run)
            first = Result(run, 0, 1, 0.99, 0.99, 1.0, 1.0, "continue")
            results.add(first)
            if end == "failed":
                results.add(replace(first, epoch=2, decision="failed", problem="the loss is NaN"))
            elif end != "crashed":
                results.add(replace(first, epoch=EPOCHS, accuracy=end, score=end, decision="stop"))
        return Ended(1 in stopped, {}, ())

    monkeypatch.setattr(confirming, "rerun", rerun)
    words = [] if said is None else said
    return confirm(sweep, Room(1, 0.0, 1, 1.0), ranked, lambda result: None, words.append), passes


def test_the_best_mean_wins_and_it_alone_is_measured(search, monkeypatch):
    second = f"c{search[1][1].group:03d}"
    found, passes = confirmed(search, monkeypatch, lambda run: 0.8 if run.startswith(second) else 0.7)
    assert [(row.mean, row.winner, len(row.test)) for row in found] == [(0.8, True, 2), (0.7, False, 0)]
    assert passes[1] == [f"{second}-0", f"{second}-1"]


@pytest.mark.parametrize("end", ["failed", "crashed"])
def test_epochs_before_a_failure_are_no_confirmation(search, monkeypatch, end):
    first, said = f"c{search[1][0].group:03d}-1", []
    found, _ = confirmed(search, monkeypatch, lambda run: end if run == first else 0.7, said=said)
    assert [row.group for row in found] == [search[1][1].group]
    assert f"trial {search[1][0].group:03d} is not confirmed" in said[-1]


def test_a_confirmation_that_fails_altogether_is_not_called_stopped(search, monkeypatch):
    assert confirmed(search, monkeypatch, lambda run: "failed")[0] == []


@pytest.mark.parametrize("number", [1, 2])
def test_a_confirmation_that_is_stopped_names_no_winner(search, monkeypatch, number):
    assert confirmed(search, monkeypatch, lambda run: 0.7, stopped=(number,))[0] is None


def test_none_is_asked_for(search, monkeypatch):
    sweep, ranked = search
    unasked = replace(sweep, spec=SweepSpec(confirm="0x0"))
    assert confirmed((unasked, ranked), monkeypatch, lambda run: 0.7) == ([], [])


def test_results_are_told_as_they_were_written(search):
    result = Result("c003-1", 3, 1, 0.5, 0.5, 1.0, 1.0, "stop")
    Results(search[0].folder, CONFIRMED).add(result)
    assert asdict(Results(search[0].folder, CONFIRMED).all[-1]) == asdict(result)
