"""What the primary writes beside metrics and checkpoints: model, card, samples and summary; and measurements."""

import errno
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from distcifar.cluster import recorder as module
from distcifar.cluster import writer
from distcifar.cluster.job import Job
from distcifar.cluster.recorder import Recorder, RunRecorder, silence
from distcifar.errors import RunError, StorageError
from distcifar.files import sha256_of
from distcifar.sealed import MODEL_FILES, verify
from distcifar.tracking.journal import read_events
from distcifar.tracking.system import read_system
from distcifar.training.state import TrainState
from distcifar.training.summary import Result, summarise
from tests.support import ONE, fresh, reports, small_recipe
from tests.unit.cluster.runs import DATA, spec_of

RECIPE = small_recipe(epochs=1)


class Run:
    """A run with its recorder, without ranks and processes."""

    def __init__(self, folder: Path, workers: int = 1) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.state: TrainState
        self.state, self.data = fresh(RECIPE)
        self.job = Job(RECIPE, spec_of(folder.parent, folder.name), folder, folder, DATA, "launch")
        self.recorder = RunRecorder(self.job, self.data, workers, silence)
        self.recorder.begin(self.state, workers, [], None)

    def train(self) -> Result:
        for report in reports(self.state, self.data):
            self.recorder.record(report)
        self.recorder.drain()
        result = summarise(self.state, self.data, ONE)
        assert result is not None
        return result


@pytest.fixture
def run(tmp_path: Path) -> Any:
    made = Run(tmp_path / "run")
    yield made
    made.recorder.close()


def no_space(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


# The end


def test_the_summary_names_the_model_s_digest_and_is_returned_as_it_is_written(run: Run):
    result = run.train()
    summary = run.recorder.finish(result)
    assert summary == result.summary | {"model_sha256": sha256_of(run.folder / "model/model.safetensors")}
    assert json.loads((run.folder / "summary.json").read_text()) == summary
    assert "model_sha256" not in result.summary, "what the other ranks return stays alike"


def test_the_model_s_card_is_sealed_with_it(run: Run):
    (run.folder / "run.json").write_text('{"git_commit": "abc123"}')
    run.recorder.finish(run.train())
    verify(run.folder / "model", (*MODEL_FILES, "README.md"))
    assert "| git commit | abc123 |" in (run.folder / "model/README.md").read_text()


@pytest.mark.parametrize(("outcome", "told"), [("finished", 12.5), ("early stop", None)])
def test_what_was_foretold_of_a_whole_run_stands_in_its_summary(run: Run, outcome: str, told: float | None):
    (run.folder / "run.json").write_text('{"estimate": {"seconds": 12.5, "start": null, "measured": "2026-01-02"}}')
    result = run.train()
    result.summary["outcome"] = outcome
    assert run.recorder.finish(result).get("estimated_seconds") == told


@pytest.mark.parametrize("text", ["", "{", "\0"])
def test_facts_that_cannot_be_read_do_not_cost_the_run_its_end(run: Run, text: str):
    (run.folder / "run.json").write_text(text)
    assert "model_sha256" in run.recorder.finish(run.train())
    assert run.recorder.problem is None


def test_samples_are_there_and_need_no_pickle(run: Run):
    result = run.train()
    run.recorder.finish(result)
    with np.load(run.folder / "samples.npz", allow_pickle=False) as file:
        assert (file["images"] == result.samples.images).all()


def test_the_summary_which_makes_a_run_finished_comes_last_but_for_its_event(run: Run, monkeypatch: pytest.MonkeyPatch):
    """Whoever kills the primary before finds all else written, and the run unfinished."""
    result, replace, order = run.train(), os.replace, []
    before = len(read_events(run.folder))

    def noting(old: Any, new: Any) -> None:
        if Path(new).parent == run.folder:
            there = {path.name for path in run.folder.iterdir()}
            order.append((Path(new).name, "model" in there, len(read_events(run.folder)) - before))
        replace(old, new)

    monkeypatch.setattr(os, "replace", noting)
    run.recorder.finish(result)
    assert order == [("samples.npz", True, 0), ("summary.json", True, 0)]
    assert read_events(run.folder)[-1]["kind"] == "finished"


@pytest.mark.parametrize("what", ["save_model", "write_atomically"])
def test_a_disk_that_fails_at_the_end_is_a_problem_and_the_run_unfinished(
    run: Run, what: str, monkeypatch: pytest.MonkeyPatch
):
    result = run.train()
    monkeypatch.setattr(module, what, no_space)
    run.recorder.finish(result)
    assert isinstance(run.recorder.problem, StorageError)
    assert "No space left" in str(run.recorder.problem)
    assert not (run.folder / "summary.json").exists()


# Measurements


def leave(folder: Path, rank: int, **values: Any) -> None:
    (folder / "ranks").mkdir(exist_ok=True)
    (folder / f"ranks/{rank}.hardware.json").write_text(json.dumps({"host": f"node-{rank}", **values}))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the recorder's clock shows."""
    seconds = [100.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: seconds[0]))
    return seconds


def test_the_ranks_samples_are_written_every_ten_seconds_with_the_step(tmp_path: Path, clock: list[float]):
    run = Run(tmp_path / "run", workers=2)
    for rank in (0, 1, 2):  # the third is of a start with more workers
        leave(run.folder, rank, cpu_percent=rank)
    for report in reports(run.state, run.data):  # three steps and an epoch
        run.recorder.record(report)
        clock[0] += 6.0
    run.recorder.close()
    found = read_system(run.folder)
    assert [line["step"] for line in found] == [1, 3]
    assert found[0]["ranks"] == [
        {"rank": 0, "host": "node-0", "cpu_percent": 0},
        {"rank": 1, "host": "node-1", "cpu_percent": 1},
    ]


def test_the_first_samples_are_waited_for_a_second_at_a_time(tmp_path: Path, clock: list[float]):
    run = Run(tmp_path / "run")
    for report in reports(run.state, run.data):
        run.recorder.record(report)
        leave(run.folder, 0)
        clock[0] += 0.6
    run.recorder.close()
    assert [line["step"] for line in read_system(run.folder)] == [3]


def test_a_disk_that_takes_no_measurement_is_a_problem_and_no_crash(run: Run):
    leave(run.folder, 0)
    (run.folder / "system.jsonl").mkdir()
    run.train()
    assert isinstance(run.recorder.problem, StorageError)


# One writer


def test_a_second_primary_is_refused_and_the_first_one_s_lock_outlives_it(run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(writer, "SOON_SECONDS", 0.1)
    monkeypatch.setattr(writer, "WRITER_SECONDS", 0.2)
    for _ in range(2):
        told: list[Any] = []
        with pytest.raises(RunError, match="Another process writes"):
            RunRecorder(run.job, run.data, 1, told.append)
        assert [event["kind"] for event in told] == ["waiting"], "it is said why nothing happens"
    run.recorder.close()
    RunRecorder(run.job, run.data, 1, silence).close()


@pytest.mark.parametrize(("error", "told"), [(RunError("a", "b", "c"), RunError), (OSError("gone"), StorageError),
                                             (KeyError("a bug"), KeyError)])  # fmt: skip
def test_a_primary_that_cannot_begin_leaves_the_run_to_the_next_one(
    run: Run, error: Exception, told: type[Exception], monkeypatch: pytest.MonkeyPatch
):
    run.recorder.close()

    def refuse(*_: Any) -> None:
        raise error

    monkeypatch.setattr(writer, "WRITER_SECONDS", 0.2)
    with monkeypatch.context() as patch:
        patch.setattr(module, "require_progress", refuse)
        with pytest.raises(told):
            RunRecorder(run.job, run.data, 1, silence)
    RunRecorder(run.job, run.data, 1, silence).close()


def test_the_recorder_of_other_ranks_does_nothing_and_has_no_problem(run: Run):
    run.recorder.drain()
    other, before = Recorder(), sorted(run.folder.rglob("*"))
    other.begin(run.state, 1, [], None)
    for report in reports(run.state, run.data):
        other.record(report)
    other.drain()
    result = summarise(run.state, run.data, ONE)
    assert result is not None
    assert other.finish(result) is result.summary
    other.close()
    assert other.problem is None
    assert sorted(run.folder.rglob("*")) == before
