"""The end of a search: what its trials are called then, its winner, and the files that say so."""

import json

import pytest

from distcifar.config.space import apply
from distcifar.errors import StorageError
from distcifar.recipes import read_recipe
from distcifar.sweep.folder import Results
from distcifar.sweep.ranking import Confirmed
from distcifar.sweep.winner import (
    best_recipe,
    ending_of,
    known_confirmed,
    ranked_trials,
    require_exportable,
    write_ending,
)
from tests.unit.sweep.sweeps import made_up


def ended(made, confirmed=()):
    trials, ranked = ranked_trials(made.sweep, [made.points.get(n, {}) for n in range(24)], over=True)
    return ending_of(made.sweep, trials, ranked, confirmed)


@pytest.mark.parametrize(
    ("decision", "during", "after"), [("pause", "paused", "stopped"), ("continue", "running", "finished")]
)
def test_nothing_waits_or_runs_when_the_search_is_over(tmp_path, decision, during, after):
    made = made_up(tmp_path / "s", trials=3, scheduler="none", until=4)
    line = made.results[3]
    path = made.sweep.folder / "results.jsonl"
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    lines[3]["decision"] = decision
    path.write_text("".join(json.dumps(found) + "\n" for found in lines))
    states = [
        {trial.number: trial.state for trial in ranked_trials(made.sweep, list(made.points.values()), over=over)[0]}
        for over in (False, True)
    ]
    assert [state[line.trial] for state in states] == [during, after]


def test_the_winner_is_the_confirmed_one_and_its_file_a_recipe_that_says_where_it_comes_from(tmp_path):
    made = made_up(tmp_path / "s")
    first, second = ended(made).ranked[:2]
    confirmed = [
        Confirmed(second.group, "d", (1, 2), (0.8, 0.9), 0.85, 0.05, winner=True, test=(0.79, 0.81)),
        Confirmed(first.group, "e", (1, 2), (0.7, 0.7), 0.7, 0.0),
    ]
    ending = ended(made, confirmed)
    assert ending.winner.group == second.group
    paths = write_ending(made.sweep, ending, str(tmp_path / "mine"))
    assert [path.name for path in paths] == ["ranking.json", "best.json", "mine.json"]
    recipe = read_recipe(tmp_path / "mine.json")
    assert recipe == best_recipe(made.sweep, ending, "mine")
    assert recipe.digest() == apply(made.sweep.recipe, second.point).digest()
    assert "85.00% +- 5.00% on validation over 2 seed(s)" in recipe.description
    assert known_confirmed(made.sweep) == confirmed


def test_without_a_confirmation_the_first_of_the_ranking_wins_and_that_is_said(tmp_path):
    made = made_up(tmp_path / "s")
    ending = ended(made)
    assert ending.winner.place == 1
    assert "not confirmed" in best_recipe(made.sweep, ending, "a").description


def test_a_search_without_a_result_has_no_winner(tmp_path):
    made = made_up(tmp_path / "s", until=0)
    assert not Results(made.sweep.folder).all
    with pytest.raises(StorageError, match="No trial of 's'"):
        write_ending(made.sweep, ended(made))


def test_a_place_that_cannot_take_the_recipe_file_is_refused_before_the_search(tmp_path):
    require_exportable("")
    require_exportable(str(tmp_path / "mine"))
    with pytest.raises(StorageError, match=r"--export is '.*nowhere/mine'.*does not exist"):
        require_exportable(str(tmp_path / "nowhere" / "mine"))


def test_a_disk_that_refuses_the_end_is_one_message(tmp_path, monkeypatch):
    found = made_up(tmp_path / "a")
    trials, ranked = ranked_trials(found.sweep, ())

    def full(path, value):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("distcifar.sweep.winner.write_json", full)
    with pytest.raises(StorageError, match=r"ranking\.json cannot be written: No space left on device.*jobs/best\.py"):
        write_ending(found.sweep, ending_of(found.sweep, trials, ranked, []))
