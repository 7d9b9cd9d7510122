"""Real trainings, killed and cut off in all ways, and what a W&B server has of them in the end. All slow."""

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from distcifar.tracking.identity import read_identity
from distcifar.tracking.journal import read_events
from distcifar.tracking.rows import epoch_rows, iter_rows
from distcifar.tracking.shipping.content import shipped_rows
from tests.chaos.programs import REPOSITORY, Program, newest_step, same_end
from tests.support.wandb_lab import KEY, Lab

pytestmark = pytest.mark.slow
TWO = ("--workers", "2", "--checkpoint-steps", "20", "--upload-minutes", "0")
REPORT = REPOSITORY / "jobs" / "report.py"


def starts(program: Program) -> int:
    return sum(event["kind"] in ("start", "continue") for event in read_events(program.folder))


def children(program: Program, name: str) -> list[psutil.Process]:
    found = psutil.Process(program.process.pid).children(recursive=True)
    return [child for child in found if child.is_running() and child.name().startswith(name)]


def kill_one(program: Program, name: str) -> None:
    """SIGKILL to one process of Ray, and patience until the run has started again."""
    before = starts(program)
    program.wait_until(lambda: children(program, name), name)
    random.choice(children(program, name)).kill()
    program.wait_until(lambda: starts(program) > before, "a new start")


def go_to(program: Program, step: int) -> None:
    program.wait_until(lambda: program.step() >= step, f"step {step}")


def faulted_run(place: Path, name: str, environment: dict[str, str]) -> Program:
    """A run of two workers with three dead workers, a dead controller and two dead programs, which ends well."""
    words = (*TWO, "--epochs", "8")
    step = 20
    for number in range(3):
        program = Program(place, name, *words, environment=environment)
        for victim in (["ray::RayTrainW", "ray::TrainContr"], ["ray::RayTrainW"], ["ray::RayTrainW"])[number]:
            step += random.Random(number).randint(20, 60)
            go_to(program, step)
            kill_one(program, victim)
            assert not [ray for ray in children(program, "ray::") if KEY in ray.environ().values()]
        step += 30
        go_to(program, step)
        if number < 2:
            program.kill()
    program.finish()
    return program


def repeatable(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what a clock has put into it: steps that are done again have other times, and the same numbers."""
    return {k: v for k, v in row.items() if k != "seconds" and not k.startswith(("_", "perf/", "hardware/"))}


def assert_same_history(lab: Lab, folder: Path) -> None:
    """The server has one run with each row of the journal once, in order, with the journal's values."""
    assert len(lab.state()["runs"]) == 1
    identity = read_identity(folder)
    assert identity is not None
    run = lab.run(identity.id)
    expected = list(shipped_rows(iter_rows(folder)))
    assert [row["_step"] for row in run["history"]["rows"]] == [step for step, _ in expected]
    assert [repeatable(row) for row in run["history"]["rows"]] == [repeatable(values) for _, values in expected]
    ends = [row["epoch"] for row in run["history"]["rows"] if "validation/accuracy" in row]
    assert ends == [row["epoch"] for row in epoch_rows(folder)]
    assert run["state"] == "finished"
    assert run["exit_code"] == 0


@pytest.mark.timeout(1800)
def test_three_dead_workers_a_dead_controller_and_two_dead_programs_are_one_curve(lab: Lab, tmp_path: Path):
    program = faulted_run(tmp_path, "hit", lab.client(tmp_path / "home") | {"OMP_NUM_THREADS": "1"})
    assert_same_history(lab, program.folder)


@pytest.mark.timeout(1800)
def test_the_same_offline_synced_three_times_with_one_interruption(lab: Lab, tmp_path: Path):
    offline = lab.client(tmp_path / "home", online=False) | {"OMP_NUM_THREADS": "1"}
    program = faulted_run(tmp_path, "hit", offline)
    assert not lab.state()["runs"]
    sync = [sys.executable, str(REPORT), "sync", "hit", "--runs", str(tmp_path / "runs")]
    online = lab.client(tmp_path / "home")
    lab.fault(kind="stall", match="storage", seconds=6)  # so that it is in the middle of something
    interrupted = subprocess.Popen(sync, env=online, cwd=tmp_path, start_new_session=True)
    interrupted_at = time.monotonic() + 60
    while not lab.state()["runs"] and time.monotonic() < interrupted_at:
        time.sleep(0.1)
    time.sleep(2)
    assert lab.state()["runs"]
    assert interrupted.poll() is None, "it is to be in the middle"
    os.killpg(interrupted.pid, signal.SIGKILL)
    interrupted.wait()
    lab.fault()
    subprocess.run(sync, env=online, cwd=tmp_path, check=True)
    first = lab.state()
    subprocess.run(sync, env=online, cwd=tmp_path, check=True)
    assert_same_history(lab, program.folder)
    assert versions(lab.state()) == versions(first), "nothing is there twice"


def versions(state: dict) -> dict:
    return {
        found["collection"]: [(version["version"], version["aliases"]) for version in found["versions"]]
        for found in state["collections"]
    }


@pytest.mark.timeout(900)
def test_a_server_that_is_down_for_a_minute_and_at_the_end_slows_and_loses_nothing(lab: Lab, tmp_path: Path):
    environment = lab.client(tmp_path / "home") | {"OMP_NUM_THREADS": "1"}
    words = ("--epochs", "280", "--batch-size", "256", "--upload-minutes", "0")
    program = Program(tmp_path, "cut-off", *words, environment=environment)
    identity = tmp_path / "runs" / "cut-off" / "tracking.json"
    program.wait_until(lambda: identity.exists() and any(lab.state()["runs"]), "the run on the server")
    program.wait_until(lambda: lab.state()["runs"][0]["history"]["lines"] > 20, "rows on the server")
    lab.stop()
    down, first = time.monotonic(), program.step()
    while time.monotonic() < down + 60 and program.process.poll() is None:
        time.sleep(0.5)
    last = program.step()
    lab.restart()
    assert program.process.poll() is None, "the run is to be longer than the outage"
    assert last - first > 50
    rows = list(iter_rows(program.folder))
    steps = {row["step"]: 256 / row["perf/images_per_s"] for row in rows if row["kind"] == "step"}
    before = [seconds for step, seconds in steps.items() if 3 < step <= first]
    during = [seconds for step, seconds in steps.items() if first < step <= last]
    print(f"{len(during)} steps, median {statistics.median(during):.4f} s, worst {max(during):.4f} s")
    usual_hiccups = max(2 * statistics.median(before), max(before))  # this machine has its own
    assert max(during) <= usual_hiccups
    program.wait_until(lambda: program.step() >= 280 * 7 - 100, "the last epochs")
    lab.stop()
    program.finish()
    lab.restart()
    sync = [sys.executable, str(REPORT), "sync", "cut-off", "--runs", str(tmp_path / "runs")]
    subprocess.run(sync, env=lab.client(tmp_path / "home"), cwd=tmp_path, check=True)
    assert_same_history(lab, program.folder)


@pytest.mark.timeout(900)
def test_another_machine_goes_on_with_nothing_but_the_server(lab: Lab, tmp_path: Path):
    here, there = tmp_path / "here", tmp_path / "there"
    words = ("--epochs", "4", "--checkpoint-steps", "10", "--upload-minutes", "0", "--deterministic")
    for place in (here, there):
        place.mkdir()
    whole = Program(here, "whole", *words)
    whole.finish()
    environment = lab.client(tmp_path / "home") | {"OMP_NUM_THREADS": "1"}
    stopped = Program(here, "wandering", *words, environment=environment)
    go_to(stopped, 70)
    stopped.process.send_signal(signal.SIGTERM)
    assert stopped.wait() == 130
    step = newest_step(stopped.folder)
    identity = read_identity(stopped.folder)
    assert identity is not None
    assert lab.run(identity.id)["state"] in ("preempting", "preempted", "failed")

    elsewhere = lab.client(tmp_path / "second-home") | {"OMP_NUM_THREADS": "1"}
    reference = f"wandb:local-team/distcifar/{identity.id}"
    again = Program(there, identity.id, *words, "--resume", reference, environment=elsewhere)
    again.finish()
    events = read_events(again.folder)
    assert [event["step"] for event in events if event["kind"] == "continue"] == [step]
    assert same_end(again.folder, whole.folder)
    assert_same_history(lab, again.folder)
    assert json.loads((again.folder / "run.json").read_text())["parent"]["checkpoint"] == reference
