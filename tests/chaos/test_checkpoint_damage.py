"""Contract 7 on real run directories: nothing damaged is loaded, the last good checkpoint is, and no pickle ever."""

import os
import pickle
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from distcifar.cluster.job import Job
from distcifar.data.prepare import PreparedData
from distcifar.errors import CheckpointError
from distcifar.sealed import FILES, seal
from distcifar.tracking.journal import read_events
from distcifar.training.checkpoint import checkpoints, load_checkpoint, newest_good
from tests.chaos.conftest import Record
from tests.chaos.ranks import Fault, a_job, attempt, differences, plan_problems, prepared
from tests.chaos.table import Trial
from tests.support import NORM_CNN

RECIPE = {"model": NORM_CNN, "ema_decay": 0.8}
SPEC = {"checkpoint_steps": 0, "keep_last": 9}
NAMES = [*FILES, "manifest.json"]
SWAPPED = ["state.safetensors", "state.json", "model.json", "manifest.json"]  # no two checkpoints have the same


# Damages: each is given the checkpoint and an older one, and returns those that it leaves damaged


def truncate(newest: Path, _: Path, draw: random.Random) -> set[Path]:
    path = newest / draw.choice(NAMES)
    os.truncate(path, draw.randrange(path.stat().st_size - 1))  # a manifest without its line break is a whole one
    return {newest}


def flip_a_bit(newest: Path, _: Path, draw: random.Random) -> set[Path]:
    path = newest / draw.choice(NAMES)
    content = bytearray(path.read_bytes())
    # One white space for another is no damage to a manifest.
    places = [i for i, byte in enumerate(content) if path.suffix == ".safetensors" or not chr(byte).isspace()]
    content[draw.choice(places)] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    return {newest}


def zero_a_block(newest: Path, _: Path, draw: random.Random) -> set[Path]:
    path = newest / draw.choice(NAMES)
    content = bytearray(path.read_bytes())
    length = min(len(content), draw.choice((64, 512, 4096)))
    while True:
        place = draw.randrange(len(content) - length + 1)
        if any(content[place : place + length]):
            break
    content[place : place + length] = bytes(length)
    path.write_bytes(content)
    return {newest}


def delete_a_file(newest: Path, _: Path, draw: random.Random) -> set[Path]:
    (newest / draw.choice(NAMES)).unlink()
    return {newest}


def swap_with_an_older_one(newest: Path, older: Path, draw: random.Random) -> set[Path]:
    name = draw.choice(SWAPPED)
    aside = (newest / name).rename(newest / "aside")
    (older / name).rename(newest / name)
    aside.rename(older / name)
    return {newest, older}


def put_a_folder_in_a_files_place(newest: Path, _: Path, draw: random.Random) -> set[Path]:
    path = newest / draw.choice(NAMES)
    path.unlink()
    path.mkdir()
    return {newest}


def empty_the_manifest(newest: Path, _: Path, draw: random.Random) -> set[Path]:
    (newest / "manifest.json").write_text(draw.choice(("", "{}", '{"format_version": 2, "files": {}}')))
    return {newest}


def put_a_file_in_its_place(newest: Path, _: Path, draw: random.Random) -> set[Path]:
    shutil.rmtree(newest)
    newest.write_bytes(draw.randbytes(draw.choice((0, 1000))))
    return {newest}


Damage = Callable[[Path, Path, random.Random], set[Path]]
DAMAGES: list[Damage] = [
    truncate,
    flip_a_bit,
    zero_a_block,
    delete_a_file,
    swap_with_an_older_one,
    put_a_folder_in_a_files_place,
    empty_the_manifest,
    put_a_file_in_its_place,
]


# The run that they befall


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> PreparedData:
    return prepared(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data: PreparedData, tmp_path_factory) -> Path:
    """The run directory of a run to which nothing has happened."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert attempt(a_job(data, folder, RECIPE, **SPEC), 1, folder.with_name("scratch")).summary
    return folder


@pytest.fixture(scope="module")
def begun(data: PreparedData, tmp_path_factory) -> Path:
    """A run stopped four times, the last time in its second epoch: run/ with its checkpoints, and scratch/."""
    folder = tmp_path_factory.mktemp("begun")
    for number in range(4):
        scratch = folder / "scratch" / f"attempt-{number}"
        ended = attempt(a_job(data, folder / "run", RECIPE, **SPEC), 1, scratch, Fault("stopped", 2))
        assert "stopped" in (ended.results[0] or {}), ended
        (folder / "run" / "stop").unlink()
    assert len(checkpoints(folder / "run" / "checkpoints")) >= 4  # one at each stop
    return folder


@pytest.fixture
def job(begun: Path, data: PreparedData, tmp_path: Path) -> Job:
    """To go on with a copy of `begun`."""
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
    return a_job(data, tmp_path / "run", RECIPE, **SPEC)


def content_of(folder: Path) -> dict[str, bytes | None]:
    """All files and folders below `folder`."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        everything = metafunc.config.getoption("--chaos") == "all"
        metafunc.parametrize("seed", range(104 if everything else 8))


def test_a_damage_is_detected_and_the_checkpoint_before_is_taken(
    job: Job, whole: Path, tmp_path: Path, record: Record, seed: int
):
    draw = random.Random(seed)
    damage = DAMAGES[seed % len(DAMAGES)]
    newest, *others = checkpoints(job.folder / "checkpoints")
    damaged = damage(newest, draw.choice(others), draw)
    good = next(path for path in others if path not in damaged)

    problems = []
    taken, found = newest_good(job.folder / "checkpoints")
    if taken is None or taken.folder != good:
        problems.append(f"{taken and taken.folder.name} is taken")
    if not found or newest.name not in found[0].found:
        problems.append("the damage is not named")
    if (seed // len(DAMAGES) + 3) % 4 == seed % 4:  # a real run for a quarter of them, in turn
        problems += after_going_on(job, whole, tmp_path, newest, good)
    outcome = f"differs: {'; '.join(problems)}" if problems else "detected, and the last good one is taken"
    lost = int(newest.name[5:]) - int(good.name[5:])
    record(Trial(f"the newest checkpoint damaged: {words(damage)}", outcome, not problems, lost))
    assert problems == [], f"seed {seed}"


def words(damage: Damage) -> str:
    return damage.__name__.replace("_", " ")


def after_going_on(job: Job, whole: Path, tmp_path: Path, newest: Path, good: Path) -> list[str]:
    """What is wrong with a run that goes on from there, and saves at steps before the damaged checkpoint's."""
    job = replace(job, spec=replace(job.spec, checkpoint_steps=1, keep_last=2))
    ended = attempt(job, 1, tmp_path / "scratch" / "attempt-4")
    if not ended.summary:
        return [str(ended)]
    events = read_events(job.folder)
    told = [event["text"] for event in events if event["kind"] == "damaged checkpoint"]
    problems = [] if told and newest.name in told[0] else [f"the events {told}"]
    steps = [event["step"] for event in events if event["kind"] == "continue"]
    if steps[-1] != int(good.name[5:]):
        problems.append(f"it went on at {steps[-1]}")
    return problems + differences(job.folder, whole) + plan_problems(job, tmp_path / "scratch", 14)


@pytest.mark.parametrize("size", [1, 2])
def test_where_all_checkpoints_are_damaged_the_run_says_so_and_nothing_is_touched(
    job: Job, tmp_path: Path, record: Record, size: int
):
    """Starting afresh would hide the loss."""
    draw = random.Random(size)
    for folder in checkpoints(job.folder / "checkpoints"):
        draw.choice([truncate, flip_a_bit, delete_a_file, zero_a_block])(folder, folder, draw)
    before = content_of(job.folder)
    ended = attempt(job, size, tmp_path / "scratch" / "attempt-4")
    refused = [type(error) for error in ended.errors] == [CheckpointError] * size
    untouched = content_of(job.folder) == before
    outcome = "CheckpointError, nothing touched" if refused and untouched else str(ended)
    record(Trial("all checkpoints damaged", outcome, refused and untouched, seconds=ended.seconds))
    assert refused, ended
    assert untouched


# Pickles


class Bomb:
    """What runs code when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


LURES = [
    "state.pt", "checkpoint.pt", "checkpoint.pkl", "optimizer.pkl", "metadata.pkl", "model/model.pt",
    "model.safetensors", "checkpoints/last.ckpt", "checkpoints/step-00000099.pkl", "checkpoints/.metadata",
    "checkpoints/latest", "ranks/0.pkl", "train_run.pkl",
]  # fmt: skip


def test_pickles_under_plausible_names_are_never_executed(job: Job, whole: Path, tmp_path: Path, record: Record):
    """Beside what the run reads, and sealed in a newer checkpoint in place of each of its files."""
    mark = tmp_path / "exploded"
    bomb = pickle.dumps({"model": Bomb(mark)})
    for lure in LURES:
        path = job.folder / lure
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bomb)
    newest = checkpoints(job.folder / "checkpoints")[0]
    sealed = []
    for number, name in enumerate(NAMES, 90):
        folder = Path(shutil.copytree(newest, newest.with_name(f"step-{number:08d}")))
        (folder / name).write_bytes(bomb)
        if name != "manifest.json":
            (folder / "manifest.json").unlink()
            seal(folder)
        sealed.append(folder)

    for folder in sealed:
        with pytest.raises(CheckpointError):
            load_checkpoint(folder)
    ended = attempt(job, 1, tmp_path / "scratch" / "attempt-4")

    problems = differences(job.folder, whole) if ended.summary else [str(ended)]
    problems += ["executed"] if mark.exists() else []
    outcome = f"differs: {'; '.join(problems)}" if problems else "never executed; the last good checkpoint is taken"
    record(Trial("pickles in the run directory", outcome, not problems))
    assert problems == []
    pickle.loads(bomb)
    assert mark.exists(), "the bomb of this test is none"
