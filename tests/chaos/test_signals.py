"""SIGTERM in each phase, SIGKILL at any time, through jobs/train.py: what is left, and how the run goes on."""

import contextlib
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from distcifar.training.checkpoint import checkpoint_name, newest_good
from tests.chaos.conftest import Record
from tests.chaos.programs import ENVIRONMENT, TRAIN, Program, newest_step, resumed_at, same_end
from tests.chaos.table import Trial

SLOW = Path(__file__).with_name("slow_train.py")
GRACE = 3.0  # seconds that `ray job stop` leaves before SIGKILL
WORDS = ("--checkpoint-steps", "10")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("signals")


@pytest.fixture(scope="module")
def whole(place: Path) -> Path:
    program = Program(place, "whole", *WORDS)
    program.finish()
    return program.folder


def in_evaluation(program: Program) -> Callable[[], bool]:
    """Ready a moment after the 56 steps of the first epoch are done."""
    seen: list[float] = []

    def ready() -> bool:
        if program.step() >= 56 and not seen:
            seen.append(time.monotonic())
        return bool(seen) and time.monotonic() - seen[0] > 0.3

    return ready


def while_saving(program: Program) -> Callable[[], bool]:
    return lambda: any((program.folder / "checkpoints").glob(".aside-*"))


def moment(rng: random.Random, program: Program, phase: str) -> tuple[Callable[[], bool], str]:
    """When to send the signal, and how to say it."""
    if phase == "compile":  # half a minute from the checkpoint of step 0 on
        first = program.folder / "checkpoints" / checkpoint_name(0)
        wait = rng.uniform(1.0, 6.0)
        return lambda: first.exists() and time.time() - first.stat().st_mtime > wait, "the compiler"
    if phase == "start-up":
        then = time.monotonic() + rng.uniform(0.05, 5.0)
        return lambda: time.monotonic() > then, "the moment"
    if phase == "train":
        step = rng.randint(1, 100)
        return lambda: program.step() >= step, f"step {step}"
    return {"evaluate": in_evaluation, "save": while_saving}[phase](program), phase


TRIES = {"start-up": 5, "compile": 2, "train": 5, "evaluate": 4, "save": 4}  # of --chaos all: twenty
SLOWED = ("evaluate", "save")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "phase", [phase if phase == "evaluate" else pytest.param(phase, marks=pytest.mark.slow) for phase in TRIES]
)
def test_sigterm_leaves_a_checkpoint_that_is_at_most_a_step_old(
    place: Path, whole: Path, phase: str, tries: Callable[[int, int], int], record: Record, monkeypatch
):
    words = WORDS
    if phase == "compile":
        words = (*WORDS, "--compile", "on")
        compiled = Program(place, "whole-compiled", *words)
        compiled.finish()
        whole = compiled.folder
    for number in range(tries(1, TRIES[phase])):
        name = f"{phase}-{number}"
        monkeypatch.setitem(ENVIRONMENT, "SLOW", phase)  # read by slow_train.py
        monkeypatch.setitem(ENVIRONMENT, "TORCHINDUCTOR_CACHE_DIR", str(place / name))  # compile anew
        program = Program(place, name, *words, script=SLOW if phase in SLOWED else TRAIN)
        program.wait_until(*moment(random.Random(name), program, phase))
        program.process.send_signal(signal.SIGTERM)
        sent = time.monotonic()
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.process.wait(GRACE)
        took = time.monotonic() - sent
        program.kill()  # as `ray job stop` does, if it is still there
        lost = program.step() - newest_step(program.folder)
        loadable = phase == "start-up" or newest_good(program.folder / "checkpoints")[0] is not None
        again = Program(place, name, *words)
        again.finish()
        alike = same_end(program.folder, whole)
        kept = loadable and lost <= 1 and alike and (took < GRACE or phase == "compile")
        record(Trial(f"SIGTERM, then SIGKILL after 3 s: {phase}", "checkpoint loads, same end", kept, lost, None))
        assert kept, f"{name}: {lost=} {loadable=} {alike=} {took=:.1f}"


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("workers", [1, 2])
def test_sigkill_of_the_program_and_the_same_command_ends_alike(
    place: Path, workers: int, tries: Callable[[int, int], int], record: Record
):
    rng = random.Random(workers)
    words = (*WORDS, "--workers", str(workers))
    whole = Program(place, f"whole-{workers}", *words)
    whole.finish()
    for number in range(tries(1, 7 if workers == 1 else 3)):
        name = f"killed-{workers}-{number}"
        program = Program(place, name, *words)
        step = rng.randint(0, 80)  # of 112: the program is not to end before it is killed
        program.wait_until(lambda: program.step() >= step, f"step {step}")  # noqa: B023 (called at once)
        program.kill()
        killed, reached = time.monotonic(), program.step()
        again = Program(place, name, *words)
        again.wait_until(lambda: again.step() > reached or again.process.poll() == 0, "a new step")  # noqa: B023
        seconds = time.monotonic() - killed
        again.finish()
        lost = reached - resumed_at(program.folder)
        kept = lost <= 20 and same_end(program.folder, whole.folder)
        record(Trial(f"SIGKILL of the program, {workers} worker(s)", "same command, same end", kept, lost, seconds))
        assert lost <= 20, f"{name}: two intervals of ten steps at most"
        assert same_end(program.folder, whole.folder), f"{name}, killed at step {reached}"
