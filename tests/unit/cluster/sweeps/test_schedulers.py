"""An interrupted search comes to the same decisions; asha against a reference; pbt stays in its space."""

import uuid
from contextlib import suppress
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distcifar.cluster.sweeps.schedulers import _bounded, make_scheduler, metric_of, mutable
from distcifar.config.space import Dimension, Domain, Space, chosen, only_if, ranged
from distcifar.config.sweep import SweepSpec
from distcifar.sweep.folder import Result, Results

EPOCHS = 9
NOBODY = SimpleNamespace(get_live_trials=list)


class Killed(Exception):
    pass


class Trial:
    """As much of Tune's as these schedulers look at."""

    def __init__(self):
        self.trial_id = uuid.uuid4().hex


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
    monkeypatch.setattr("distcifar.sweep.folder.os.fsync", lambda handle: None)


def search(folder, spec, accuracies, until=None):
    """What Ray Tune does with one trial after the other; killed after `until` results were told."""
    results, heard = Results(folder), []
    scheduler = make_scheduler(spec, Space(()), EPOCHS, results, heard.append)
    scheduler.set_search_properties(metric_of(spec), "max")
    for number, row in enumerate(accuracies):
        trial, best = Trial(), 0.0
        scheduler.on_trial_add(NOBODY, trial)
        for epoch, accuracy in enumerate(row, start=1):
            best = max(best, accuracy)
            result = asdict(Result(f"{number:03d}", number, epoch, accuracy, best, 1.0, 1.0))
            ended = epoch == EPOCHS or scheduler.on_trial_result(NOBODY, trial, result) == "STOP"
            if ended:
                scheduler.on_trial_complete(NOBODY, trial, result)
            if until is not None and len(heard) >= until:
                raise Killed
            if ended:
                break
    assert [r.run for r in heard] == [r.run for r in results.all]
    return [(r.run, r.epoch, r.decision) for r in results.all]


ROWS = st.lists(
    st.lists(st.integers(0, 30).map(lambda n: n / 30), min_size=EPOCHS, max_size=EPOCHS), min_size=1, max_size=12
)


@pytest.mark.parametrize("kind", ["asha", "median", "none"])
@given(rows=ROWS, kills=st.lists(st.integers(1, 60), max_size=4))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_killed_anywhere_the_end_is_that_of_the_search_that_was_not(tmp_path_factory, kind, rows, kills):
    spec = SweepSpec(scheduler=kind, grace=1, reduction=3)
    undisturbed = search(tmp_path_factory.mktemp("a"), spec, rows)
    folder = tmp_path_factory.mktemp("b")
    for until in kills:
        with suppress(Killed):
            search(folder, spec, rows, until)
    assert search(folder, spec, rows) == undisturbed
    lines = (folder / "results.jsonl").read_text().splitlines()
    assert len(lines) == len(set(undisturbed))  # nothing is told twice


def asha(rows, grace, reduction):
    """Li et al. 2018 (arXiv 1810.05934) with stopping, as Tune has it: the best 1/reduction of a rung go on."""
    rungs, told = {}, []
    milestones = [m for m in (grace * reduction**k for k in range(EPOCHS)) if m < EPOCHS]
    for number, row in enumerate(rows):
        for epoch in range(1, EPOCHS + 1):
            best = max(row[:epoch])
            stop = epoch == EPOCHS
            if epoch in milestones:
                before = rungs.setdefault(epoch, [])
                stop |= bool(before) and best < np.percentile(before, 100 * (1 - 1 / reduction))
                before.append(best)
            told.append((f"{number:03d}", epoch, "stop" if stop else "continue"))
            if stop:
                break
    return told


@given(rows=ROWS, grace=st.integers(1, 4), reduction=st.sampled_from([2, 3]))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_asha_stops_what_the_paper_stops(tmp_path_factory, rows, grace, reduction):
    spec = SweepSpec(scheduler="asha", grace=grace, reduction=reduction)
    assert search(tmp_path_factory.mktemp("a"), spec, rows) == asha(rows, grace, reduction)


def test_an_epoch_that_is_told_again_after_a_crash_counts_once(tmp_path):
    heard = []
    scheduler = make_scheduler(SweepSpec(scheduler="median"), Space(()), EPOCHS, Results(tmp_path), heard.append)
    scheduler.set_search_properties("score", "max")
    trial = Trial()
    scheduler.on_trial_add(NOBODY, trial)
    result = asdict(Result("000", 0, 1, 0.5, 0.5, 1.0, 1.0))
    assert [scheduler.on_trial_result(NOBODY, trial, dict(result)) for _ in range(3)] == ["CONTINUE"] * 3
    assert len(heard) == len(Results(tmp_path).all) == len(scheduler._results[trial]) == 1


def test_a_trial_that_is_interrupted_or_only_measured_leaves_no_result(tmp_path):
    heard = []
    scheduler = make_scheduler(SweepSpec(), Space(()), EPOCHS, Results(tmp_path), heard.append)
    scheduler.set_search_properties("score", "max")
    trial = Trial()
    for words in ({"interrupted": True}, {"test_accuracy": 0.5}):
        scheduler.on_trial_add(NOBODY, trial)
        scheduler.on_trial_complete(NOBODY, trial, asdict(Result("000", 0, 1, 0.5, 0.5, 1.0, 1.0)) | words)
    assert not heard
    assert not Results(tmp_path).all


def test_a_failed_trial_is_marked(tmp_path):
    heard = []
    scheduler = make_scheduler(SweepSpec(), Space(()), EPOCHS, Results(tmp_path), heard.append)
    scheduler.set_search_properties("score", "max")
    trial = Trial()
    scheduler.on_trial_add(NOBODY, trial)
    failed = asdict(Result("000", 0, 1, 0.0, 0.0, 0.0, 0.0, problem="the loss is NaN"))
    scheduler.on_trial_complete(NOBODY, trial, failed)
    assert [(r.decision, r.problem) for r in heard] == [("failed", "the loss is NaN")]


@given(
    place=st.floats(0, 1), factor=st.sampled_from([0.8, 1.2]), kind=st.sampled_from(["loguniform", "uniform", "int"])
)
def test_pbt_stays_within_the_space(place, factor, kind):
    dimension = Dimension(path="optim.lr", domain=Domain(kind=kind, low=1, high=9))
    value = _bounded({"optim.lr": dimension.domain._at(place) * factor}, [dimension])["optim.lr"]
    assert 1 <= value <= 9
    assert kind != "int" or isinstance(value, int)


def test_pbt_changes_no_shapes_and_nothing_conditional():
    fields = (
        ranged("optim.lr", 1e-3, 1),
        chosen("model.hidden", (1,)),
        chosen("optim.name", "sgd"),
        chosen("batch_size", 32),
    )
    assert [mutable(field) for field in fields] == [True, False, False, True]
    assert not mutable(only_if(ranged("optim.momentum", 0.1, 0.9), "optim.name", "sgd"))
