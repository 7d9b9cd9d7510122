"""SIGTERM in each phase, SIGKILL at any time, through jobs/train.py: what is left, and how the run goes on."""

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

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


def phases(rng: random.Random, program: Program, phase: str) -> tuple[Callable[[], bool], str]:
    """When to send the signal, and how to say it."""
    if phase == "start-up":
        moment = time.monotonic() + rng.uniform(0.05, 5.0)
        return lambda: time.monotonic() > moment, "the moment"
    if phase == "train":
        step = rng.randint(1, 100)
        return lambda: program.step() >= step, f"step {step}"
    return {"evaluate": in_evaluation, "save": while_saving}[phase](program), phase


LONGER = pytest.mark.slow


@pytest.mark.parametrize(
    "phase", [pytest.param("start-up", marks=LONGER), pytest.param("train", marks=LONGER), "evaluate", "save"]
)
def test_sigterm_leaves_a_checkpoint_that_is_at_most_a_step_old(
    place: Path, whole: Path, phase: str, tries: Callable[[int, int], int], record: Record, monkeypatch
):
    for number in range(tries(1, 5)):
        rng = random.Random(f"{phase} {number}")
        name = f"{phase}-{number}"
        if phase in ("evaluate", "save"):
            monkeypatch.setitem(ENVIRONMENT, "SLOW", phase)
        program = Program(place, name, *WORDS, script=SLOW if phase in ("evaluate", "save") else TRAIN)
        program.wait_until(*phases(rng, program, phase))
        program.process.send_signal(signal.SIGTERM)
        sent = time.monotonic()
        program.wait()
        took = time.monotonic() - sent
        reached, saved = program.step(), newest_step(program.folder)
        again = Program(place, name, *WORDS)
        again.finish()
        kept = reached - saved <= 1 and took < GRACE and same_end(program.folder, whole)
        record(Trial(f"SIGTERM: {phase}", "checkpoint at most a step old, same end", kept, reached - saved, took))
        assert reached - saved <= 1, f"{name}: step {reached}, checkpoint of step {saved}"
        assert took < GRACE, f"{name}: took {took:.1f} s"
        assert same_end(program.folder, whole), name


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
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
        step = rng.randint(0, 111)
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
