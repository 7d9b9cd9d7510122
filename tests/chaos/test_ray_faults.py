"""Workers that die or stand still, on a real Ray cluster: the run goes on by itself, to the same end."""

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from distcifar.tracking.journal import read_events
from tests.chaos.conftest import Record
from tests.chaos.programs import Program, same_end
from tests.chaos.table import Trial

pytestmark = pytest.mark.slow
TWO = ("--workers", "2", "--max-failures", "100", "--checkpoint-steps", "20")
CRASHES = (signal.SIGKILL, signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ray")


def workers(program: Program) -> list[psutil.Process]:
    """The program's Ray workers that train."""
    found = []
    for child in psutil.Process(program.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # ended meanwhile
            if child.name().startswith("ray::RayTrainWo"):
                found.append(child)
    return found


def starts(program: Program) -> int:
    return sum(event["kind"] in ("start", "continue") for event in read_events(program.folder))


@pytest.mark.timeout(1800)
def test_a_worker_that_dies_costs_less_than_a_checkpoints_interval(
    place: Path, tries: Callable[[int, int], int], record: Record
):
    count, rng = tries(1, 20), random.Random(1)
    words = (*TWO, "--epochs", str(2 * count))
    whole = Program(place, "whole", *words)
    whole.finish()
    program = Program(place, "crashed", *words)
    program.wait_until(lambda: program.step() > 0, "the first step")
    happened = []
    for number in range(count):
        step = program.step() + rng.randint(1, 60)
        program.wait_until(lambda: program.step() >= step, f"step {step}")  # noqa: B023 (called at once)
        before = starts(program)
        os.kill(rng.choice(workers(program)).pid, CRASHES[number % len(CRASHES)])
        killed, reached = time.monotonic(), program.step()
        program.wait_until(lambda: starts(program) > before, "a new start")  # noqa: B023
        resumed = [e for e in read_events(program.folder) if e["kind"] in ("start", "continue")][-1]["step"]
        program.wait_until(lambda: program.step() > resumed, "a new step")  # noqa: B023
        happened.append((reached - resumed, time.monotonic() - killed))
    program.finish()
    alike = same_end(program.folder, whole.folder)
    for lost, seconds in happened:
        record(Trial("a worker of two dies", "goes on by itself, same end", alike and lost <= 40, lost, seconds))
    assert alike
    assert max(lost for lost, _ in happened) <= 40, "the interval of 20 steps, and one more that was being written"


def test_a_worker_that_stands_still_is_named_and_the_run_restarted(place: Path, record: Record):
    words = (*TWO, "--epochs", "8", "--hang-seconds", "8")
    whole = Program(place, "whole-8", *words)
    whole.finish()
    program = Program(place, "hangs", *words)
    program.wait_until(lambda: program.step() >= 30, "step 30")
    before = starts(program)
    hung = workers(program)[1]
    hung.suspend()
    stopped, reached = time.monotonic(), program.step()
    program.wait_until(lambda: starts(program) > before, "a new start")
    resumed = [e for e in read_events(program.folder) if e["kind"] == "continue"][-1]["step"]
    program.wait_until(lambda: program.step() > resumed, "a new step")
    seconds = time.monotonic() - stopped
    program.finish()
    told = [event["text"] for event in read_events(program.folder) if event["kind"] == "hang"]
    named = bool(told) and f"process {hung.pid}" in told[0] and os.uname().nodename in told[0]
    alike = same_end(program.folder, whole.folder)
    outcome = "named by rank and host, goes on by itself, same end"
    record(Trial("a worker stands still (8 s allowed)", outcome, named and alike, reached - resumed, seconds))
    assert named, told
    assert alike


def test_a_run_that_dies_three_times_at_one_step_gives_up_and_says_so(place: Path, record: Record):
    program = Program(place, "doomed", *TWO)
    program.wait_until(lambda: program.step() >= 25, "step 25")
    deaths = 0
    while program.process.poll() is None and deaths < 5:
        for worker in workers(program):
            worker.kill()
        deaths, before = deaths + 1, starts(program)
        while program.process.poll() is None and starts(program) == before:
            time.sleep(0.01)
    code = program.wait()
    told = program.errors()
    kept = code == 4 and "The run failed 3 times after step" in told and "Traceback" not in told
    record(Trial("dies at the same step every time", "stops after three times and says why", kept))
    assert kept, (code, told)


def test_rays_controller_dies_and_is_started_again(place: Path, record: Record):
    words = (*TWO, "--epochs", "8")
    whole = Program(place, "whole-of-8", *words)
    whole.finish()
    program = Program(place, "headless", *words)
    program.wait_until(lambda: program.step() >= 70, "step 70")
    before, reached = starts(program), program.step()
    children = psutil.Process(program.process.pid).children(recursive=True)
    next(child for child in children if child.name().startswith("ray::TrainContr")).kill()
    killed = time.monotonic()
    program.wait_until(lambda: starts(program) > before, "a new start")
    resumed = [event for event in read_events(program.folder) if event["kind"] == "continue"][-1]["step"]
    program.wait_until(lambda: program.step() > resumed, "a new step")
    seconds = time.monotonic() - killed
    program.finish()
    alike = same_end(program.folder, whole.folder)
    record(Trial("Ray's controller dies", "goes on by itself, same end", alike, reached - resumed, seconds))
    assert alike
