"""Searches as typed: one whole, then killed, crashed and crowded ones, and each scheduler and searcher, on `debug`."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from distcifar.config import RunSpec
from distcifar.config.sweep import SweepSpec
from distcifar.recipes import get_recipe, read_recipe
from distcifar.recipes.spaces import SPACES
from distcifar.sweep.folder import CONFIRMED, RESULTS, read_results
from distcifar.sweep.plan import checked_search
from distcifar.tracking.journal import read_events
from distcifar.tracking.outcome import outcome
from tests.support.wandb_lab import KEY, wandb_lab

JOBS = Path(__file__).parents[2] / "jobs"
SMALL = ("--max-epochs", "3", "--grace", "1", "--wandb", "disabled", "--device", "cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


def typed(program: str, *words: str, place: Path, data: Path) -> list[str]:
    """The command line of a program, with folders of its own."""
    return [sys.executable, str(JOBS / program), *words, "--data-root", str(data), "--runs", str(place)]


def tune(place: Path, data: Path, *words: str, timeout: float = 280) -> subprocess.CompletedProcess[str]:
    """`python jobs/tune.py debug WORDS`."""
    command = typed("tune.py", "debug", *words, place=place, data=data)
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout)


def decisions(folder: Path, name: str = RESULTS) -> list[tuple[Any, ...]]:
    return [(r.run, r.epoch, r.accuracy, r.loss, r.decision) for r in read_results(folder, name)]


def test_a_search_names_a_winner_that_trains_from_its_file(tmp_path: Path, data: Path):
    words = ("--trials", "2", "--confirm", "1x1", "--name", "s", "--export", str(tmp_path / "mine"))
    done = tune(tmp_path, data, *SMALL, *words, "--max-epochs", "2")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    folder = tmp_path / "s"
    ending = json.loads((folder / "ranking.json").read_text())
    winner = next(row for row in ending["confirmed"] if row["winner"])
    assert len(winner["test"]) == 1
    measured = [path.parent.name for path in (folder / "trials").glob("*/summary.json")]
    assert measured == [f"c{winner['group']:03d}-0"]  # the test images: for nothing else
    assert {path.name for path in folder.glob("*.png")} == {"curves.png", "parallel.png", "parameters.png"}
    assert (folder / "sweep.html").stat().st_size > 100_000
    recipe = read_recipe(tmp_path / "mine.json")
    assert recipe.digest() == winner["recipe_digest"]
    assert recipe.name == "mine"


@pytest.mark.slow
def test_a_search_that_has_ended_is_told_once_more_and_nothing_is_trained(tmp_path: Path, data: Path):
    words = ("--trials", "3", "--confirm", "1x2", "--name", "s")
    assert tune(tmp_path, data, *SMALL, *words).returncode == 0
    folder = tmp_path / "s"
    ending = json.loads((folder / "ranking.json").read_text())
    again = tune(tmp_path, data, *SMALL, *words)
    assert again.returncode == 0
    assert json.loads((folder / "ranking.json").read_text()) == ending
    shown = subprocess.run([sys.executable, str(JOBS / "best.py"), str(folder)], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert json.loads((folder / "ranking.json").read_text()) == ending


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--space", "optim.rl=loguniform:1e-3:1"), "no field 'rl'"),
        (("--space", "optim.lr=loguniform:0:1"), "above 0"),
        (("--space", "only"), "empty"),
        (("--search", "bohb"), "--scheduler hyperband"),
        (("--scheduler", "pbt", "--workers-per-trial", "2"), "single processes"),
        (("--scheduler", "asha", "--reduction", "1"), "> 1"),
        (("--search", "grid", "--trials", "3"), "points, and --trials is 3"),
        (("--confirm", "three"), "NxM"),
        (("--select-on", "last"), "no validation images"),
    ],
)
def test_a_mistake_is_told_in_one_message(tmp_path: Path, data: Path, words: tuple[str, ...], message: str):
    done = tune(tmp_path, data, *SMALL, "--name", "s", *words)
    assert done.returncode == 2, done.stderr
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "s").exists()


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(("scheduler", "trials", "most"), [("asha", 8, 10), ("pbt", 4, 5)])
def test_a_driver_that_is_killed_comes_to_the_end_of_one_that_was_not(
    tmp_path: Path, data: Path, scheduler: str, trials: int, most: int
):
    words = (*SMALL, "--trials", str(trials), "--scheduler", scheduler, "--concurrent", "1", "--confirm", "1x1",
             "--name", "s", "--deterministic")  # fmt: skip
    assert tune(tmp_path / "a", data, *words).returncode == 0
    generator, kills = random.Random(0), 0
    while kills < most:
        with subprocess.Popen(
            typed("tune.py", "debug", *words, place=tmp_path / "b", data=data), stdout=subprocess.DEVNULL
        ) as driver:
            known = len(decisions(tmp_path / "b" / "s"))
            _wait_for(lambda: driver.poll() is not None or len(decisions(tmp_path / "b" / "s")) > known, 120)  # noqa: B023
            time.sleep(generator.uniform(0, 3))
            if driver.poll() is None:
                os.kill(driver.pid, signal.SIGKILL)
                kills += 1
            else:
                break
    assert kills >= most // 2, "the search was over before"
    assert tune(tmp_path / "b", data, *words).returncode == 0
    for name in (RESULTS, CONFIRMED):
        assert decisions(tmp_path / "b" / "s", name) == decisions(tmp_path / "a" / "s", name)
    for folder in (tmp_path / "b" / "s" / "trials").iterdir():
        for event in read_events(folder):  # less than an epoch of rows is cut off: no epoch was trained twice
            if event["kind"] == "continue":
                assert event["reached"] - event["step"] < 64 * 2
    ends = [json.loads((tmp_path / run / "s" / "ranking.json").read_text()) for run in "ab"]
    assert ends[0]["confirmed"] == ends[1]["confirmed"]


@pytest.mark.slow
def test_a_trial_whose_process_is_killed_is_taken_up_again(tmp_path: Path, data: Path):
    words = (*SMALL, "--trials", "3", "--concurrent", "1", "--confirm", "0x0", "--name", "s", "--scheduler", "none")
    with subprocess.Popen(
        typed("tune.py", "debug", *words, place=tmp_path, data=data), stdout=subprocess.DEVNULL
    ) as driver:
        _wait_for(lambda: len(decisions(tmp_path / "s")) >= 2, 120)
        victims = [child for child in psutil.Process(driver.pid).children(recursive=True) if _is_trial(child)]
        assert victims
        for victim in victims:
            victim.kill()
        assert driver.wait(200) == 0
    assert sorted((run, epoch) for run, epoch, *_ in decisions(tmp_path / "s")) == [
        (f"{trial:03d}", epoch) for trial in range(3) for epoch in (1, 2, 3)
    ]


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="mounts a small disk")
def test_a_full_disk_stops_the_search_with_one_message_and_it_goes_on_when_there_is_room(tmp_path: Path, data: Path):
    words = (*SMALL, "--trials", "4", "--confirm", "0x0", "--name", "s")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "small", disk], check=True)
    try:
        full = tune(disk, data, *words)
        assert full.returncode == 2
        assert "Make room" in full.stderr
        assert "Traceback" not in full.stderr
        subprocess.run(["mount", "-o", "remount,size=200m", disk], check=True)
        assert tune(disk, data, *words).returncode == 0
        assert len({run for run, *_ in decisions(disk / "s")}) == 4
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_fifty_trials_on_the_cores_of_this_machine_end(tmp_path: Path, data: Path):
    words = (
        "--trials",
        "50",
        "--max-epochs",
        "2",
        "--grace",
        "1",
        "--wandb",
        "disabled",
        "--confirm",
        "0x0",
        "--name",
        "s",
    )
    done = tune(tmp_path, data, *words, timeout=880)
    assert done.returncode == 0, done.stderr
    assert len(json.loads((tmp_path / "s" / "ranking.json").read_text())["ranked"]) == 50
    assert "starv" not in (done.stdout + done.stderr).lower()
    assert "insufficient" not in (done.stdout + done.stderr).lower()


@pytest.mark.slow
def test_trials_of_two_workers(tmp_path: Path, data: Path):
    words = (*SMALL, "--trials", "2", "--workers-per-trial", "2", "--confirm", "1x1", "--name", "s")
    done = tune(tmp_path, data, *words, "--max-epochs", "2", timeout=290)
    assert done.returncode == 0, done.stderr
    runs = [json.loads((tmp_path / "s" / "trials" / "000" / "run.json").read_text())["spec"]["workers"]]
    assert runs == [2]
    assert len(json.loads((tmp_path / "s" / "ranking.json").read_text())["confirmed"][0]["test"]) == 1


@pytest.mark.slow
def test_the_exported_recipe_trains_to_the_confirmed_scores(tmp_path: Path, data: Path):
    words = ("--trials", "3", "--confirm", "1x3", "--name", "s", "--export", str(tmp_path / "mine"), "--deterministic")
    assert tune(tmp_path, data, *SMALL, *words).returncode == 0
    winner = json.loads((tmp_path / "s" / "ranking.json").read_text())["confirmed"][0]
    scores = {}
    for seed in (*winner["seeds"], read_recipe(tmp_path / "mine.json").seed):
        train = ("--seed", str(seed), "--name", f"seed-{seed}", "--device", "cpu", "--deterministic",
                 "--cpus-per-worker", "1")  # as the trials have, of which two run at once  # fmt: skip
        command = typed("train.py", str(tmp_path / "mine.json"), *train, place=tmp_path, data=data)
        subprocess.run([*command, "--wandb", "disabled"], check=True, capture_output=True, timeout=120)
        scores[seed] = json.loads((tmp_path / f"seed-{seed}" / "summary.json").read_text())["best_metric"]
    assert [scores[seed] for seed in winner["seeds"]] == winner["accuracies"], "to the last bit"
    assert abs(scores[0] - winner["mean"]) <= 2 * winner["error"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_in_w_and_b_a_search_is_one_group_with_a_report_and_its_key_goes_nowhere_else(tmp_path: Path, data: Path):
    with wandb_lab(tmp_path / "lab") as lab:
        words = ("--max-epochs", "3", "--trials", "4", "--confirm", "1x1", "--name", "s", "--device", "cpu")
        command = typed("tune.py", "debug", *words, place=tmp_path / "runs", data=data)
        trials, environment = tmp_path / "runs" / "s" / "trials", lab.client(tmp_path / "home")
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as driver:
            _wait_for(lambda: len(decisions(trials.parent)) > 1, 120)
            driver.send_signal(signal.SIGINT)
            assert "To go on: " in driver.communicate(timeout=120)[0]
        assert driver.returncode == 130
        begun = [path.parent for path in trials.glob("*/tracking.json")]
        assert {outcome(folder).kind for folder in begun} <= {"stopped", "ended"}
        assert "stopped" in {outcome(folder).kind for folder in begun}
        done = subprocess.run(command, capture_output=True, text=True, timeout=290, env=environment)
        assert done.returncode == 0, done.stderr
        assert "Report in W&B: http" in done.stdout
        state = lab.state()
    runs = state["runs"]
    assert len(runs) == 5 == len(list(trials.glob("*/recipe.json")))  # four trials and a confirmation
    assert {run["group"] for run in runs} == {"s"}
    assert {run["state"] for run in runs} == {"finished"}
    measured = [run for run in runs if "test/accuracy" in run["summary"]]
    assert len(measured) == 1, "the winner's"
    assert [(report["title"], report["blocks"].count("panel-grid")) for report in state["reports"]] == [("s", 3)]
    for path in (tmp_path / "runs").rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes(), path


@pytest.mark.gpu
def test_four_trials_share_a_card(tmp_path: Path, data: Path):
    words = ("--max-epochs", "3", "--trials", "8", "--confirm", "1x1", "--name", "s", "--wandb", "disabled")
    done = tune(tmp_path, data, *words, "--gpus-per-trial", "0.25")
    assert done.returncode == 0, done.stderr
    assert "4 trial(s) at once" in done.stdout
    assert json.loads((tmp_path / "s" / "ranking.json").read_text())["confirmed"][0]["test"]


@pytest.fixture(scope="module")
def cluster(data: Path) -> Iterator[None]:
    """Ray in this process, for many small searches."""
    from distcifar.cluster.session import connected

    with connected(RunSpec(), 2):
        yield


KINDS = [
    *({"scheduler": kind} for kind in ("asha", "hyperband", "pbt", "median", "none")),
    {"search": "grid", "space": ("only", "optim.lr=loguniform:1e-3:1e-2", "batch_size=choice:32|64"), "levels": 3},
    {"search": "optuna"},
    {"search": "bohb", "scheduler": "hyperband"},
    {"search": "optuna", "seeds": 2, "trials": 3},
    {"search": "random", "seeds": 2, "trials": 3},
]


@pytest.mark.slow
@pytest.mark.parametrize("words", KINDS, ids=lambda words: "-".join(str(value) for value in words.values())[:40])
def test_each_scheduler_and_searcher_comes_to_an_end_and_again_to_the_same(
    tmp_path: Path, data: Path, cluster: None, words: dict[str, Any]
):
    from distcifar.cluster.sweeps.launch import open_sweep
    from distcifar.cluster.sweeps.room import Room
    from distcifar.cluster.sweeps.search import search
    from distcifar.sweep.folder import write_sweep
    from distcifar.sweep.winner import ranked_trials

    spec = SweepSpec(**{"trials": 6, "max_epochs": 4, "reduction": 2.0, "confirm": "0x0", **words})
    run = RunSpec(name="s", runs=str(tmp_path), data_root=str(data), device="cpu", wandb="disabled")
    recipe, space = checked_search(get_recipe("debug"), SPACES["debug"], spec)
    sweep = open_sweep(recipe, space, spec, run, print)
    write_sweep(sweep)
    heard: list[Any] = []
    ended = search(sweep, Room(1, 0.0, 2, 1.0), heard.append, print)
    assert (ended.stopped, ended.failed) == (False, {})
    trials, ranked = ranked_trials(sweep, ())
    assert len(trials) == spec.trials * spec.seeds
    assert ranked[0].mean > 0.6
    before = decisions(sweep.folder)
    again: list[Any] = []
    search(sweep, Room(1, 0.0, 2, 1.0), again.append, print)
    assert decisions(sweep.folder) == before  # nothing is trained again, and nothing is decided otherwise
    assert sorted((r.run, r.epoch) for r in again) == sorted((r.run, r.epoch) for r in heard)


def _is_trial(process: psutil.Process) -> bool:
    try:
        return any("ResourceTrainable" in word for word in process.cmdline())
    except psutil.Error:
        return False


def _wait_for(done: Any, seconds: float) -> None:
    until = time.monotonic() + seconds
    while not done() and time.monotonic() < until:
        time.sleep(0.05)
