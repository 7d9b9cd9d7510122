"""What a search leaves in its trials' run directories when they end, and which of them it ships."""

from dataclasses import replace

import pytest

from distcifar.cluster.sweeps import shipping
from distcifar.cluster.sweeps.shipping import Trials
from distcifar.sweep.folder import Results, read_results
from distcifar.tracking.outcome import told_outcome
from tests.unit.sweep.sweeps import made_up


class Tracked:
    """As much of a Tracker as is used."""

    all: list["Tracked"]

    def __init__(self, folder, how, environment, announce):
        self.folder, self.how, self.environment = folder, how, environment
        self.rows, self.closed = 0, False
        Tracked.all.append(self)

    def listen(self, row):
        self.rows += 1

    def close(self, seconds):
        self.closed = True


@pytest.fixture
def search(tmp_path, monkeypatch):
    """A search whose trials have run directories as far as these tests look into them."""
    Tracked.all = []
    monkeypatch.setattr(shipping, "Tracker", Tracked)
    found = made_up(tmp_path / "s", trials=4, epochs=9)
    for result in found.results:
        folder = found.sweep.trials / result.run
        (folder / "checkpoints" / "step-00000001").mkdir(parents=True, exist_ok=True)
        (folder / "tracking.json").write_text("{}")
    return found


def heard(search, wandb, environment=None):
    sweep = replace(search.sweep, run=replace(search.sweep.run, wandb=wandb))
    trials = Trials(sweep, environment or {}, print)
    for result in search.results:
        trials.heard(result)
    trials.close()


def test_a_trial_that_ends_says_so_and_leaves_room_if_it_was_stopped(search):
    heard(search, "disabled")
    ends = {result.run: result for result in search.results}
    assert {end.epoch == 9 for end in ends.values()} == {True, False}
    for run, end in ends.items():
        outcome = told_outcome(search.sweep.trials / run)
        assert outcome is not None
        assert (outcome.kind, outcome.exit_code) == ("ended", 0)
        assert (search.sweep.trials / run / "checkpoints").exists() == (end.epoch == 9)
    assert not Tracked.all


def test_each_trial_is_shipped_once_and_let_go_at_its_end(search):
    heard(search, "online", {"WANDB_API_KEY": "secret"})
    assert sorted(t.folder.name for t in Tracked.all) == sorted({result.run for result in search.results})
    assert all(
        t.closed and t.environment == {"WANDB_API_KEY": "secret"} and t.how.mode == "online" for t in Tracked.all
    )
    Tracked.all = []
    heard(search, "online")  # the same search goes on: what ended before was told before
    assert not Tracked.all


def test_what_a_scheduler_left_waiting_is_ended_with_the_search(search):
    waiting = replace(search.results[-1], run="003", trial=3, epoch=8, decision="pause")
    Results(search.sweep.folder).add(waiting)
    trials = Trials(replace(search.sweep, run=replace(search.sweep.run, wandb="disabled")), {}, print)
    trials.over()
    trials.close()
    assert told_outcome(search.sweep.trials / "003").kind == "ended"
    assert [r.run for r in read_results(search.sweep.folder)][-1] == "003"
    assert told_outcome(search.sweep.trials / "000") is None


def test_a_failed_trial_says_why(search):
    failed = replace(search.results[0], decision="failed", problem="the loss is NaN")
    trials = Trials(replace(search.sweep, run=replace(search.sweep.run, wandb="disabled")), {}, print)
    trials.heard(failed)
    trials.close()
    outcome = told_outcome(search.sweep.trials / failed.run)
    assert (outcome.kind, outcome.text) == ("failed", "the loss is NaN")
