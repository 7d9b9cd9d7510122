"""One rank's training from its data to its result: divergence, stops and failures on the way change nothing else."""

import ast
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest

import distcifar
from distcifar.cluster import recorder, restarts, writer
from distcifar.cluster.job import Job
from distcifar.cluster.launch import RunResult
from distcifar.config import OptimConfig, Recipe
from distcifar.errors import DivergenceError, RunError
from distcifar.tracking.journal import read_events
from distcifar.tracking.startup import read_startup
from distcifar.training import engine
from distcifar.training.checkpoint import checkpoints, load_checkpoint
from distcifar.world import World
from tests.support import DIVERGING, ONE, run_ranks, small_recipe
from tests.unit.cluster.runs import (
    DATA,
    EVALUATIONS,
    ROLLING,
    Killed,
    assert_same_end,
    evaluation_interrupted,
    every_checkpoint,
    killed_at,
    kinds,
    nan_at,
    on_rank,
    on_two_ranks,
    progress_of,
    rows_in,
    spec_of,
    typed,
)

PLAIN = small_recipe(optim=OptimConfig(lr=0.1, momentum=0.9))


def rolled(runs: Path, name: str, rollbacks: int, recipe: Recipe = ROLLING, **words: Any) -> RunResult:
    """A run whose fifth step diverges until it has gone back so often; its checkpoints are of the epochs' ends."""
    with patch.object(engine, "train_step", nan_at(5, rollbacks)):
        return typed(recipe, runs, name, **words)


def rates(folder: Path) -> list[float]:
    return [row["train/lr"] for row in rows_in(folder) if row["kind"] == "step"]


# Divergence


@pytest.mark.parametrize("rollbacks", [1, 2, 3])
def test_after_a_divergence_a_run_goes_on_from_its_last_checkpoint_with_half_the_rate(tmp_path: Path, rollbacks: int):
    """If that was in vain its weights may have been bad already: then from the one before."""
    rolled(tmp_path, "run", rollbacks)
    events = [event for event in read_events(tmp_path / "run") if event["kind"] == "rollback"]
    assert [event["step"] for event in events] == [3, 0, 0][:rollbacks]
    assert "At step 5 (epoch 2) the loss is nan" in events[0]["text"]
    assert f"with {0.5**rollbacks:g} of the recipe's learning rate" in events[-1]["text"]
    kept = 3 if rollbacks == 1 else 0
    assert rates(tmp_path / "run") == pytest.approx([0.1] * kept + [0.1 / 2**rollbacks] * (9 - kept))
    assert [row["step"] for row in rows_in(tmp_path / "run")] == [1, 2, 3, 3, 4, 5, 6, 6, 7, 8, 9, 9]


def test_a_fourth_divergence_ends_the_run_with_what_it_was(tmp_path: Path):
    with pytest.raises(DivergenceError, match="At step 5"):
        rolled(tmp_path, "run", 99)
    assert kinds(tmp_path / "run").count("rollback") == 3


def test_without_rollbacks_the_first_divergence_ends_the_run(tmp_path: Path):
    with pytest.raises(DivergenceError, match="At step 5"):
        rolled(tmp_path, "run", 1, replace(ROLLING, on_divergence="stop"))
    assert "rollback" not in kinds(tmp_path / "run")


def test_a_divergence_before_the_first_checkpoint_goes_back_to_the_start(tmp_path: Path):
    with patch.object(engine, "train_step", nan_at(2, 1)):
        typed(ROLLING, tmp_path)
    assert rates(tmp_path / "run") == pytest.approx([0.05] * 9)


def test_a_rate_that_no_halving_makes_sound_is_told(tmp_path: Path):
    with pytest.raises(DivergenceError):
        typed(replace(DIVERGING, on_divergence="rollback"), tmp_path)


@pytest.mark.parametrize("step", [4, 5, 7, 9])  # before and after the first checkpoint with the lower rate
def test_killed_after_a_rollback_a_run_ends_as_if_it_had_not_been(tmp_path: Path, step: int):
    rolled(tmp_path, "whole", 2)
    seen: list[int] = []

    def kill_once_rolled(row: dict[str, Any]) -> None:
        if row["kind"] == "step":
            seen.append(row["step"])
        if seen.count(step) == (3 if step == 4 else 1):  # the fourth is done before each rollback, too
            raise Killed

    with pytest.raises(Killed):
        rolled(tmp_path, "killed", 2, listen=kill_once_rolled)
    assert kinds(tmp_path / "killed").count("rollback") == 2
    rolled(tmp_path, "killed", 2)
    assert_same_end(tmp_path / "killed", tmp_path / "whole")
    assert progress_of(tmp_path / "killed")["rollbacks"] == 2


# Stops


def test_a_wish_to_stop_before_the_first_step_leaves_a_checkpoint_to_go_on_from(tmp_path: Path):
    typed(PLAIN, tmp_path, "whole")

    def at_once(row: dict[str, Any]) -> None:
        if row["kind"] == "start":
            (tmp_path / "run/stop").touch()

    result = typed(PLAIN, tmp_path, listen=at_once)
    assert (result.stopped_at, result.summary) == (0, None)
    (folder,) = checkpoints(tmp_path / "run/checkpoints")
    assert load_checkpoint(folder).scalars["progress"]["step"] == 0
    typed(PLAIN, tmp_path)
    assert_same_end(tmp_path / "run", tmp_path / "whole")
    assert kinds(tmp_path / "run") == ["start", "stopped", "start", "finished"]


def test_a_wish_to_stop_during_the_final_measurement_is_heard_and_measured_at_the_next_start(tmp_path: Path):
    typed(PLAIN, tmp_path, "whole")

    def at_the_end(row: dict[str, Any]) -> None:
        if row["kind"] == "epoch" and row["epoch"] == PLAIN.epochs:
            (tmp_path / "run/stop").touch()

    result = typed(PLAIN, tmp_path, listen=at_the_end)
    assert (result.stopped_at, result.summary) == (6, None)
    assert not (tmp_path / "run/summary.json").exists()
    typed(PLAIN, tmp_path)
    assert_same_end(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("batch", [0, 1, 2])
def test_a_wish_to_stop_inside_an_evaluation_changes_no_number(tmp_path: Path, batch: int):
    found = evaluation_interrupted(ONE, tmp_path, batch, validation=24, eval_batch=10)
    assert found == {"stopped at": (3, 0, 3), "rows": True, "differing": [], "chosen": []}


# Two ranks


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of what two ranks have done, and what each has returned."""
    folder = tmp_path_factory.mktemp("two")
    return folder, run_ranks(on_two_ranks, 2, folder, folder)


def test_two_ranks_go_back_together_though_only_one_has_met_the_nan(two: tuple[Path, list[dict[str, Any]]]):
    folder, ranks = two
    results = [rank["rolled"]["summary"] for rank in ranks]
    assert results[0]["test_loss"] == results[1]["test_loss"]
    assert rates(folder / "rolled") == pytest.approx([0.1] * 3 + [0.05] * 6)
    assert kinds(folder / "rolled") == ["start", "rollback", "finished"]


def test_two_ranks_end_with_the_same_words(two: tuple[Path, list[dict[str, Any]]]):
    first, second = (rank["ended"] for rank in two[1])
    assert first == second
    assert "At step 5" in first


@pytest.mark.parametrize("name", EVALUATIONS)
def test_two_ranks_agree_on_a_stop_inside_an_evaluation(two: tuple[Path, list[dict[str, Any]]], name: str):
    # Where a rank has no sample nothing is asked in the evaluation: the wish is never heard of.
    stood = (6, 2, 0) if name == "one rank has no sample" else (3, 0, 3)
    for rank in two[1]:
        assert rank["interrupted"][name] == {"stopped at": stood, "rows": True, "differing": [], "chosen": []}


# Failures


def test_a_failure_is_among_the_events_with_rank_and_host_and_is_raised(tmp_path: Path):
    with patch.object(engine, "train_step", side_effect=KeyError("a bug")), pytest.raises(KeyError):
        typed(PLAIN, tmp_path)
    failure, end = read_events(tmp_path / "run")[-2:]
    assert failure["kind"] == "failure"
    assert failure["text"].startswith("rank 0 on ")
    assert "KeyError: 'a bug'" in failure["text"]
    assert (end["kind"], end["text"]) == ("failed", "KeyError: 'a bug'")


def test_a_launch_that_is_refused_for_its_failures_leaves_the_run_to_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(restarts.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(writer, "WRITER_SECONDS", 0.2)
    (tmp_path / "run").mkdir()
    job = Job(PLAIN, spec_of(tmp_path, "run"), tmp_path / "run", tmp_path, DATA, "first")
    for _ in range(3):
        with pytest.raises(Killed):
            on_rank(World(), job, listen=killed_at(2))
    begun = read_startup(tmp_path / "run")
    error = on_rank(World(), job)["error"]
    assert isinstance(error, RunError)
    assert "failed 3 times after step 2" in str(error)
    assert "summary" in on_rank(World(), replace(job, launch="second"))
    again = read_startup(tmp_path / "run")
    assert (begun["launch"], again["launch"]) == ("first", "second")


# Clocks

STAMPS = {  # a name; notes of a moment
    "cluster/run_folder.py": 1,
    "cluster/facts.py": 1,
    "cluster/estimates/run.py": 1,
    "cluster/census.py": 2,  # compares clocks
    "tracking/journal.py": 1,
    "tracking/system.py": 1,
    "tracking/startup.py": 1,
    "tracking/registry/registry.py": 1,
    "insight/report.py": 1,
    "insight/sweep_report.py": 1,
    "benchmark/results.py": 1,
    "benchmark/run.py": 1,
    "doctor/fixes.py": 2,  # ages of files, as their dates have them
    "doctor/gather.py": 1,
    "doctor/storage.py": 1,
}


def test_no_wall_clock_decides_anything():
    """It jumps: summer time, NTP, a laptop that sleeps. Names and notes alone are made of it."""
    root = Path(distcifar.__file__).parent
    found: dict[str, int] = {}
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            named = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
            imported = isinstance(node, ast.ImportFrom) and node.module == "time"
            if imported or named in ("time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "date.today"):
                place = str(path.relative_to(root))
                found[place] = found.get(place, 0) + 1
    assert found == STAMPS


def test_the_minutes_between_checkpoints_are_those_of_a_clock_that_does_not_jump(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seconds = [1000.0]
    monkeypatch.setattr(recorder, "time", SimpleNamespace(monotonic=lambda: seconds[0]))

    def work(row: dict[str, Any]) -> None:
        seconds[0] += 61.0 if row["kind"] == "step" and row["step"] in (1, 4) else 0.0

    with every_checkpoint() as steps:
        typed(small_recipe(epochs=3), tmp_path, checkpoint_minutes=1.0, checkpoint_epochs=99, listen=work)
    improved = {row["step"] for row in rows_in(tmp_path / "run") if row.get("best_epoch") == row["epoch"]}
    assert set(steps) == {0, 2, 5, 9} | improved
