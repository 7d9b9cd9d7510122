"""A disk that fills, turns read-only or is taken away under a run: said in words by all ranks, and nothing is lost."""

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from distcifar.cluster.job import Job
from distcifar.data.prepare import PreparedData
from distcifar.errors import CheckpointError, StorageError
from distcifar.training.checkpoint import checkpoints, load_checkpoint
from tests.chaos.conftest import Record
from tests.chaos.ranks import Attempt, Fault, a_job, attempt, differences, plan_problems, prepared
from tests.chaos.table import Trial

SECONDS = 30.0  # to end after the fault, process starts on a busy machine included
RECIPE = {"batch_size": 4}  # 17 steps an epoch: metrics.jsonl grows over the end of a page
STEPS = 34


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True, capture_output=True)


@dataclass(frozen=True)
class Disk:
    """A tmpfs at `folder`."""

    folder: Path

    def resize(self, size: str) -> None:
        _mount("-o", f"remount,size={size}", str(self.folder))


@pytest.fixture
def mounted() -> Iterator[Callable[..., None]]:
    """mounted(*words, at=folder): `mount WORDS FOLDER`; skips where that is not permitted, unmounts at the end."""
    folders: list[Path] = []

    def mount(*words: str, at: Path) -> None:
        try:
            _mount(*words, str(at))
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"mounting is not permitted: {error}")
        folders.append(at)

    yield mount
    for folder in reversed(folders):
        subprocess.run(["umount", "--lazy", folder], check=False)


@pytest.fixture
def disk(mounted: Callable[..., None], tmp_path: Path) -> Disk:
    """Large enough for a whole run, until it is resized."""
    folder = tmp_path / "runs"
    folder.mkdir()
    mounted("-t", "tmpfs", "-o", "size=4m", "tmpfs", at=folder)
    return Disk(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> PreparedData:
    return prepared(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def undisturbed(data: PreparedData, tmp_path_factory) -> Callable[[int], Path]:
    """The run directory of a run on so many ranks to which nothing has happened."""
    made: dict[int, Path] = {}

    def run(size: int) -> Path:
        if size not in made:
            folder = tmp_path_factory.mktemp("whole") / "run"
            assert attempt(a_job(data, folder, RECIPE), size, folder.with_name("scratch")).summary
            made[size] = folder
        return made[size]

    return run


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "size" in metafunc.fixturenames:
        metafunc.parametrize("size", (1, 2) if metafunc.config.getoption("--chaos") == "all" else (2,))


def refusal_problems(ended: Attempt, *words: str) -> list[str]:
    """In what the end of an attempt is not one StorageError with `words` on all ranks, soon."""
    problems = ["it hangs"] if ended.hung else []
    problems += [f"{ended.seconds:.0f} s"] if ended.seconds > SECONDS else []
    problems += [f"a traceback: {text.splitlines()[-1]}" for text in ended.failures]
    if not all(isinstance(error, StorageError) for error in ended.errors):
        problems.append(f"it returns {ended.results}")
    problems += [f"{word!r} is not in {ended.errors[0]}" for word in words if word not in str(ended.errors[0])]
    return problems


def sound_problems(job: Job) -> list[str]:
    """What in the run directory passes for a checkpoint and is none."""
    found = checkpoints(job.folder / "checkpoints")
    problems = [] if found else ["there is no checkpoint"]
    for folder in found:
        try:
            load_checkpoint(folder)
        except CheckpointError as error:
            problems.append(str(error))
    return problems


def going_on_problems(job: Job, size: int, scratch: Path, whole: Path) -> list[str]:
    """What is wrong with the same job, started again."""
    ended = attempt(job, size, scratch / "attempt-1")
    if not ended.summary:
        return [str(ended)]
    return differences(job.folder, whole) + plan_problems(job, scratch, STEPS)


def tell(record: Record, fault: str, promise: str, problems: list[str], ended: Attempt) -> None:
    record(Trial(fault, "; ".join(problems) or promise, not problems, seconds=ended.seconds))
    assert problems == [], ended


SAVED = "StorageError on all ranks, and after making room the same weights"


@pytest.mark.parametrize("step", [8, 21])
def test_a_disk_that_is_full_when_a_checkpoint_is_due(
    tmp_path: Path, data: PreparedData, disk: Disk, undisturbed, record: Record, size: int, step: int
):
    """`step`: of the row after which there is no more room."""
    job, scratch = a_job(data, disk.folder / "run", RECIPE), tmp_path / "scratch"
    ended = attempt(job, size, scratch / "attempt-0", Fault("full", step), patient=True)
    problems = refusal_problems(ended, "MB are needed", "MB are free", "No space left") + sound_problems(job)
    (disk.folder / "ballast").unlink()
    disk.resize("16m")
    problems += going_on_problems(job, size, scratch, undisturbed(size))
    tell(record, "the disk is full when a checkpoint is due", SAVED, problems, ended)


def test_a_disk_that_is_full_when_rows_are_written(
    tmp_path: Path, data: PreparedData, disk: Disk, undisturbed, record: Record, size: int
):
    """No checkpoint is due before the page of metrics.jsonl is full, in the second epoch."""
    job = a_job(data, disk.folder / "run", RECIPE, checkpoint_steps=0, checkpoint_minutes=0)
    scratch = tmp_path / "scratch"
    ended = attempt(job, size, scratch / "attempt-0", Fault("full", 19), patient=True)
    problems = refusal_problems(ended, "MB are free", "No space left", "cannot be recorded") + sound_problems(job)
    (disk.folder / "ballast").unlink()
    problems += going_on_problems(job, size, scratch, undisturbed(size))
    tell(record, "the disk is full when rows are written", SAVED, problems, ended)


def test_a_disk_too_small_for_the_second_checkpoint(
    tmp_path: Path, data: PreparedData, disk: Disk, undisturbed, record: Record, size: int
):
    """Nothing is taken away: what the run itself has written fills it."""
    disk.resize("128k")
    job, scratch = a_job(data, disk.folder / "run", RECIPE, keep_last=9), tmp_path / "scratch"
    ended = attempt(job, size, scratch / "attempt-0", patient=True)
    problems = refusal_problems(ended, "MB are needed", "MB are free") + sound_problems(job)
    disk.resize("16m")
    problems += going_on_problems(job, size, scratch, undisturbed(size))
    tell(record, "the run itself fills the disk", SAVED, problems, ended)


def test_checkpoints_that_turn_read_only(
    tmp_path: Path, data: PreparedData, mounted, undisturbed, record: Record, size: int
):
    job, scratch = a_job(data, tmp_path / "run", RECIPE), tmp_path / "scratch"
    begun = attempt(job, size, scratch / "attempt-0", Fault("stopped", 20))
    assert "stopped" in (begun.results[0] or {}), begun
    (job.folder / "stop").unlink()
    root = job.folder / "checkpoints"
    mounted("--bind", str(root), at=root)
    _mount("-o", "remount,bind,ro", str(root))
    ended = attempt(job, size, scratch / "attempt-1")
    problems = refusal_problems(ended, "Read-only", "MB are free") + sound_problems(job)
    _mount("-o", "remount,bind,rw", str(root))
    again = attempt(job, size, scratch / "attempt-2")
    problems += differences(job.folder, undisturbed(size)) if again.summary else [str(again)]
    tell(record, "the checkpoints turn read-only", SAVED, problems, ended)


@pytest.mark.parametrize("fault", [Fault("vanished before a row", 20), Fault("vanished before a save", 2)], ids=str)
def test_a_run_directory_that_vanishes(tmp_path: Path, data: PreparedData, record: Record, size: int, fault: Fault):
    """It is not made anew: half a history would pass for a whole one."""
    job = a_job(data, tmp_path / "run", RECIPE)
    ended = attempt(job, size, tmp_path / "scratch", fault)
    problems = refusal_problems(ended, str(job.folder), "No such file")
    problems += ["it was made anew"] if job.folder.exists() else []
    tell(record, "the run directory is removed", "StorageError on all ranks, within seconds", problems, ended)
