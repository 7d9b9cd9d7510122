"""Contract 6 under SIGKILL: a run killed at any moment, once or thrice, ends with the bits of one that was not.

Each try is a whole run of `train_rank` in processes of its own (ranks.py), drawn from a seed that is its number.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import pytest

from distcifar.config import AugmentConfig, OptimConfig, ScheduleConfig
from distcifar.data.prepare import PreparedData
from distcifar.tracking.journal import read_events
from distcifar.training.checkpoint import checkpoints, load_checkpoint, newest_good
from tests.chaos.conftest import Record
from tests.chaos.ranks import (
    POINTS,
    RANDOM_TIME,
    STEPS,
    Fault,
    Story,
    a_job,
    attempt,
    differences,
    live_through,
    plan_problems,
    prepared,
    rows_without_clocks,
)
from tests.chaos.table import Trial
from tests.support import NORM_CNN

RECIPES = {
    "momentum, BatchNorm, dropout": {
        "model": NORM_CNN,
        "optim": OptimConfig(lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3, clip_norm=1.0),
        "schedule": ScheduleConfig(name="cosine", every="step", warmup_epochs=0.5),
        "augment": AugmentConfig(crop_padding=1, flip="alternate", mixup=0.4),
    },
    "plateau, early stop": {
        "epochs": 6,
        "early_stop": 2,
        "select_metric": "loss",
        "optim": OptimConfig(lr=0.7, momentum=0.9),
        "schedule": ScheduleConfig(name="plateau", gamma=0.5, patience=0),
    },
    "average": {"model": NORM_CNN, "ema_decay": 0.8, "optim": OptimConfig(name="adamw", lr=0.01)},
    "bf16": {"model": NORM_CNN, "precision": "bf16", "optim": OptimConfig(lr=0.05, accumulate=2)},
    "muon": {"model": NORM_CNN, "optim": OptimConfig(name="muon", lr=0.05, muon_lr=0.02)},
}
SIZES = [(2, 1, 3), (1, 3, 2), (3, 2, 1), (1, 2, 1)]
ENDS = [  # of the first two attempts: how, and after how many of its rows
    (("stopped", 4), ("stopped", 5)),
    (("killed", 9), ("stopped", 1)),
    (("killed", 5), ("killed", 5)),
    (("stopped", 2), ("killed", 8)),
]
OUTCOME = "goes on to the same weights, rows and summary"


@dataclass(frozen=True)
class Setting:
    """One line of the matrix."""

    recipe: str
    size: int
    loader: str


@dataclass(frozen=True)
class Try:
    """What is drawn from a seed."""

    seed: int
    setting: Setting
    faults: tuple[Fault, ...]
    due: int  # deaths at least: of these faults the first always come
    patient: bool  # no step is taken while a checkpoint is written


def drawn(seed: int) -> Try:
    """The points take their turns, so that each is tried; all else is random."""
    draw = random.Random(seed)
    recipe, size = draw.choice(list(RECIPES)), draw.choice((1, 2))
    names = [RANDOM_TIME, *POINTS]
    name = names[seed % len(names)]
    before = POINTS[name].only_after if name in POINTS else ""
    first = [fault_at(before, size, draw)] if before else []
    later = [fault_at(draw.choice(names), size, draw, most=2) for _ in range(draw.randrange(3 - len(first)))]
    faults = [*first, fault_at(name, size, draw), *later]
    loader = "streamed" if seed % 17 == 7 else "resident"  # FFCV needs ten seconds to compile at each start
    return Try(seed, Setting(recipe, size, loader), tuple(faults), len(first) + 1, draw.random() < 0.6)


def fault_at(name: str, size: int, draw: random.Random, most: int = 20) -> Fault:
    """`name`'s fault at one of the times that a run comes there, on one of the ranks that do."""
    if name == RANDOM_TIME:
        return Fault(name, draw.randint(0, min(most, 13)), draw.randrange(size), draw.uniform(0, 0.05))
    point = POINTS[name]
    rank = draw.randrange(size) if point.everywhere else 0
    return Fault(name, draw.randint(1, min(most, point.most)), rank)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> PreparedData:
    return prepared(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def undisturbed(data: PreparedData, tmp_path_factory) -> Callable[[Setting], Path]:
    """The run directory of a setting to which nothing has happened; made once."""
    root, made = tmp_path_factory.mktemp("undisturbed"), {}

    def run(setting: Setting) -> Path:
        if setting not in made:
            folder = root / str(len(made)) / "run"
            job = a_job(data, folder, RECIPES[setting.recipe], loader=setting.loader)
            ended = attempt(job, setting.size, folder.with_name("scratch"))
            assert ended.summary, ended
            made[setting] = folder
        return made[setting]

    return run


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    everything = metafunc.config.getoption("--chaos") == "all"
    if "one" in metafunc.fixturenames:
        seeds = range(96) if everything else range(0, 24, 8)
        metafunc.parametrize("one", [drawn(seed) for seed in seeds], ids=[f"seed {seed}" for seed in seeds])
    if "sizes" in metafunc.fixturenames:
        changes = list(product(SIZES, ENDS))[: None if everything else 2]
        metafunc.parametrize(("sizes", "ends"), changes, ids=str)


def test_a_killed_run_ends_with_the_bits_of_one_that_was_not(
    tmp_path: Path, data: PreparedData, undisturbed: Callable[[Setting], Path], record: Record, one: Try
):
    whole = undisturbed(one.setting)
    job = a_job(data, tmp_path / "run", RECIPES[one.setting.recipe], loader=one.setting.loader)

    story = live_through(job, one.setting.size, tmp_path / "scratch", one.faults, patient=one.patient)

    problems = wrong_in(story, one) or differences(job.folder, whole)
    steps = load_checkpoint(checkpoints(whole / "checkpoints")[0]).scalars["progress"]["step"]
    problems += plan_problems(job, tmp_path / "scratch", steps)
    for kill in story.kills:
        trial = Trial(f"killed {kill.fault.point}", OUTCOME, not problems, kill.lost_steps, kill.seconds)
        record(trial if not problems else replace(trial, outcome=f"differs: {', '.join(problems)}"))
    assert problems == [], f"{one}\n{[str(ended) for ended in story.attempts]}"


def wrong_in(story: Story, one: Try) -> list[str]:
    """What is wrong before anything is compared: a try without a death proves nothing."""
    if not story.attempts[-1].summary:
        return ["it came to no end"]
    return [] if len(story.kills) >= one.due else [f"{len(story.kills)} of {one.due} kills"]


# Another number of workers

PLAIN = {
    "optim": OptimConfig(lr=0.1, momentum=0.9),
    "schedule": ScheduleConfig(name="cosine", every="step", warmup_epochs=0.5),
}


def test_a_run_goes_on_with_another_number_of_workers(
    tmp_path: Path, data: PreparedData, undisturbed_alone: Path, record: Record, sizes, ends
):
    """Over its whole length each sample of each epoch was trained on once, in the batches and at the rates of a
    run with one worker."""
    job = a_job(data, tmp_path / "run", PLAIN)
    attempts, due = [], []
    for number, (size, end) in enumerate(zip(sizes, [*ends, None], strict=True)):
        (job.folder / "stop").unlink(missing_ok=True)
        saved, _ = newest_good(job.folder / "checkpoints")
        if saved is not None and saved.scalars["workers"] != size:
            due.append(f"with {size} worker(s) instead of {saved.scalars['workers']}")
        fault = end and Fault(*end)
        attempts.append(attempt(job, size, tmp_path / "scratch" / f"attempt-{number}", fault, patient=True))
    assert attempts[-1].summary, [str(one) for one in attempts]
    assert due
    problems = plan_problems(job, tmp_path / "scratch", 2 * STEPS)
    problems += unlike(job.folder, undisturbed_alone)
    told = [event["text"] for event in read_events(job.folder) if "instead of" in event["text"]]
    if len(told) != len(due) or not all(words in text for words, text in zip(due, told, strict=True)):
        problems.append(f"the events {told}")
    promise = "each sample once an epoch, the same batches and rates"
    record(Trial("the number of workers changes in an epoch", "; ".join(problems) or promise, not problems))
    assert problems == [], [str(one) for one in attempts]


@pytest.fixture(scope="module")
def undisturbed_alone(data: PreparedData, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "run"
    assert attempt(a_job(data, folder, PLAIN), 1, folder.with_name("scratch")).summary
    return folder


def unlike(folder: Path, whole: Path) -> list[str]:
    """Other rates, or losses that differ by more than the order of additions; the rates are exactly equal."""
    rows, others = rows_without_clocks(folder), rows_without_clocks(whole)
    if [(row["kind"], row["step"], row["train/lr"]) for row in rows] != [
        (row["kind"], row["step"], row["train/lr"]) for row in others
    ]:
        return ["the rates"]
    losses = [row["train/loss"] for row in rows]
    return [] if losses == pytest.approx([row["train/loss"] for row in others], rel=1e-4) else ["the losses"]
