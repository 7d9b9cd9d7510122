"""Checkpoints beside the training: what is sealed is the state as captured, and nothing goes wrong in silence."""

import errno
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from distcifar.config import OptimConfig
from distcifar.errors import StorageError
from distcifar.training import saving
from distcifar.training.checkpoint import Snapshot, capture, checkpoints, load_checkpoint, write_checkpoint
from distcifar.training.saving import CheckpointWriter, storage_error
from tests.support import NORM_CNN, differing_tensors, fresh, reports, small_recipe, train

RECIPE = small_recipe(
    model=NORM_CNN, epochs=3, ema_decay=0.7, optim=OptimConfig(name="adam", lr=0.01), select_metric="loss"
)
SOON = 20.0  # seconds in which a busy machine has done what is due at once


def nothing() -> None:
    """Nothing is to be done ahead of a checkpoint."""


@contextmanager
def writer(root: Path, keep: int = 99, before: Callable[[], None] = nothing) -> Iterator[CheckpointWriter]:
    found = CheckpointWriter(root, keep=keep, before=before)
    try:
        yield found
    finally:
        found.close()


class Gate:
    """In place of write_checkpoint: a disk that begins to write, and goes on when it is let."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.opened = threading.Semaphore(0), threading.Semaphore(0)
        monkeypatch.setattr(saving, "write_checkpoint", self)

    def __call__(self, root: Path, snapshot: Snapshot) -> Path:
        self.begun.release()
        assert self.opened.acquire(timeout=SOON)
        return write_checkpoint(root, snapshot)

    def wait(self) -> None:
        assert self.begun.acquire(timeout=SOON)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


def snapshot(step: int) -> Snapshot:
    state, _ = fresh(small_recipe())
    state.progress.step = step
    return capture(state, {})


def steps(root: Path) -> list[int]:
    return sorted(int(folder.name.removeprefix("step-")) for folder in checkpoints(root))


def test_what_is_sealed_is_the_state_at_its_capture_though_training_went_on_meanwhile(tmp_path: Path, gate: Gate):
    """From before the first step, inside an epoch and after one: the best weights are replaced meanwhile, too."""
    for reported in (0, 2, 4, 6):
        state, data = fresh(RECIPE)
        run = reports(state, data)
        for _ in range(reported):
            next(run)
        tensors = {name: value.clone() for name, value in state.tensors().items()}
        chosen = {name: value.clone() for name, value in state.chosen_weights().items()}
        scalars = state.scalars()
        root = tmp_path / str(reported)
        with writer(root) as mine:
            mine.submit(capture(state, {}), ())
            gate.wait()  # the writer holds the snapshot and has not written a byte of it
            for _ in run:
                pass  # to the end
            gate.opened.release()
            mine.drain()
            assert mine.problem is None
        assert differing_tensors(state.tensors(), tensors), "training has changed nothing?"
        found = load_checkpoint(checkpoints(root)[0])
        assert differing_tensors(found.tensors, tensors) == []
        assert differing_tensors(found.chosen, chosen) == []
        assert found.scalars == scalars | {"workers": 1}


def test_training_does_not_wait_for_a_disk_that_stands_still(tmp_path: Path, gate: Gate):
    """Only the copy is made in the loop: all epochs are done before one byte is written."""
    state, data = fresh(small_recipe())
    with writer(tmp_path) as mine:
        for _ in reports(state, data):
            mine.submit(capture(state, {}), ())
        assert state.progress.outcome == "finished"
        assert steps(tmp_path) == []
        gate.opened.release(99)
        mine.drain()
    assert steps(tmp_path)[-1] == state.progress.step


def test_the_newest_of_those_that_wait_is_written_and_the_others_are_left_out(tmp_path: Path, gate: Gate):
    with writer(tmp_path) as mine:
        mine.submit(snapshot(1), ())
        gate.wait()
        for step in (2, 3, 4):
            mine.submit(snapshot(step), ())
        gate.opened.release(99)
        mine.drain()
        assert steps(tmp_path) == [1, 4]


def test_a_drain_waits_for_the_one_in_work_and_for_the_one_behind_it(tmp_path: Path, gate: Gate):
    with writer(tmp_path) as mine:
        drained = threading.Thread(target=mine.drain)
        mine.submit(snapshot(1), ())
        gate.wait()
        mine.submit(snapshot(2), ())
        drained.start()
        gate.opened.release()
        gate.wait()  # the first is done, the second in work
        drained.join(0.05)
        assert drained.is_alive()
        gate.opened.release()
        drained.join(SOON)
        assert not drained.is_alive()
        assert steps(tmp_path) == [1, 2]


def test_a_drain_of_nothing_and_a_second_close_return_at_once(tmp_path: Path):
    with writer(tmp_path) as mine:
        mine.drain()
        mine.close()
        mine.drain()


def test_closing_writes_what_was_handed_over_and_ends_the_thread(tmp_path: Path):
    before = threading.active_count()
    with writer(tmp_path) as mine:
        mine.submit(snapshot(7), ())
    assert steps(tmp_path) == [7]
    assert threading.active_count() == before


def test_the_journal_is_flushed_ahead_of_each_checkpoint(tmp_path: Path):
    seen: list[list[int]] = []
    with writer(tmp_path, before=lambda: seen.append(steps(tmp_path))) as mine:
        for step in (1, 2):
            mine.submit(snapshot(step), ())
            mine.drain()
    assert seen == [[], [1]]


def test_old_ones_go_and_the_best_stay(tmp_path: Path):
    with writer(tmp_path, keep=2) as mine:
        for step in range(1, 7):
            mine.submit(snapshot(step), (2, 3))
            mine.drain()
    assert steps(tmp_path) == [2, 3, 5, 6]


# What goes wrong


def failing(error: BaseException) -> Callable[..., Path]:
    def write(*_: Any, **__: Any) -> Path:
        raise error

    return write


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error")])
def test_a_full_disk_is_told_with_the_step_and_the_bytes_needed_and_free(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(saving, "write_checkpoint", failing(error))
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(9, 9, 1_500_000))
    taken = snapshot(7)
    with writer(tmp_path / "run/checkpoints") as mine:
        mine.submit(taken, ())
        mine.drain()
        problem = mine.problem
    assert isinstance(problem, StorageError)
    assert str(error) in str(problem)
    assert "Step 7 cannot be recorded" in problem.found
    assert f"{taken.size_bytes / 1e6:,.1f} MB are needed, 1.5 MB are free" in problem.found


def test_a_problem_stays_a_problem_though_the_next_one_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with writer(tmp_path) as mine:
        monkeypatch.setattr(saving, "write_checkpoint", failing(OSError("once")))
        mine.submit(snapshot(1), ())
        mine.drain()
        monkeypatch.setattr(saving, "write_checkpoint", write_checkpoint)
        mine.submit(snapshot(2), ())
        mine.drain()
        assert "once" in str(mine.problem)
        assert steps(tmp_path) == [2]


@pytest.mark.parametrize("place", ["write_checkpoint", "prune_checkpoints", "before"])
def test_a_bug_in_the_thread_is_kept_for_the_training_to_raise(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    bug = KeyError("a bug")
    if place != "before":
        monkeypatch.setattr(saving, place, failing(bug))
    with writer(tmp_path, before=failing(bug) if place == "before" else nothing) as mine:
        mine.submit(snapshot(1), ())
        mine.drain()
        assert mine.problem is bug


def test_a_disk_that_is_gone_is_told_though_nobody_knows_what_is_free_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Where asking fails as well, the thread must not die of it: the training would wait for it for ever."""

    def gone(place: Path) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(saving, "write_checkpoint", failing(OSError(errno.EIO, "Input/output error")))
    monkeypatch.setattr(shutil, "disk_usage", gone)
    with writer(tmp_path) as mine:
        for step in (1, 2):
            mine.submit(snapshot(step), ())
            mine.drain()
        assert "Input/output error" in str(mine.problem)
    assert "Stale" in str(storage_error(tmp_path, 1, OSError()))


def test_a_snapshot_takes_about_its_size_on_the_disk(tmp_path: Path):
    state, data = fresh(RECIPE)
    train(state, data)
    taken = capture(state, {})
    folder = write_checkpoint(tmp_path, taken)
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert size <= taken.size_bytes <= size + 100_000
