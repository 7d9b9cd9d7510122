"""The copies of a run at a URL that its workers have: one on each machine, of which the primary's is pushed."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from distcifar.cluster import writer
from distcifar.cluster.job import Job
from distcifar.cluster.stored import pushing
from distcifar.cluster.stored.copies import own_copy
from distcifar.cluster.stored.mirror import Mirror
from distcifar.cluster.stored.places import runs_here
from distcifar.cluster.watchdog import mark_of
from distcifar.config import RunSpec
from distcifar.errors import RunError, StorageError
from distcifar.store import Store
from distcifar.tracking.journal import append_event, read_rows
from distcifar.tracking.outcome import writer_lock
from distcifar.world import World
from tests.support.fake_run import DATA, DEBUG, FakeRun


@dataclass(frozen=True)
class OfTwo(World):
    """The second of two ranks, of which the first has had the words `firsts`."""

    firsts: tuple[Any, ...] = ()

    def first(self, value: Any) -> Any:
        word = self.firsts[0]
        object.__setattr__(self, "firsts", self.firsts[1:])
        return value if word is None else word


def lend(store: Store, launch: str) -> None:
    """The driver holds the run."""
    store.write("launch.json", json.dumps({"host": "h", "pid": 1, "launch": launch, "beat": 0}).encode())


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A run of three steps that the driver has stored."""
    monkeypatch.setenv("HOME", str(tmp_path / "node"))
    runs = (tmp_path / "store").as_uri()
    folder = tmp_path / "driver" / "a"
    run = FakeRun(folder)
    run.describe()
    run.begin()
    run.go(3)
    mirror = Mirror(folder, Store(f"{runs}/a"), "driver")
    mirror.take()
    mirror.push()
    lend(mirror.store, "launch")
    return Job(DEBUG, RunSpec(runs=runs, name="a"), folder, folder, DATA, "launch", store=f"{runs}/a")


def test_a_folder_that_all_share_is_no_copy(job: Job):
    shared = replace(job, store="")
    with own_copy(shared, World()) as found:
        assert found is shared


def test_the_primary_takes_what_is_stored_and_stores_what_it_adds(job: Job):
    with own_copy(job, World()) as mine:
        assert mine.folder == runs_here(job.spec.runs) / ".ranks" / "a"
        run = FakeRun(mine.folder)
        assert len(run.rows) == 3
        run.step = 3
        run.go(2)
    store = Store(job.store)
    assert (store.read("metrics.jsonl") or b"").count(b"\n") == 5
    assert store.read("writer.json") not in (b"driver", None)


def test_another_rank_of_the_machine_brings_it_once_and_stores_only_what_its_failure_left(job: Job):
    Mirror(job.folder, Store(job.store), "token").take()
    (job.folder / "unseen").write_text("x")

    def fail() -> None:
        with own_copy(job, OfTwo(rank=1, size=2, firsts=("token", None, None))) as mine:
            assert len(read_rows(mine.folder)) == 3
            (mine.folder / "mark").write_text("brought once")
            append_event(mine.folder, "memory", "rank 1 ran out of memory")
            (mine.folder / "microbatch.json").write_text('{"images": 8}')
            with own_copy(job, OfTwo(rank=2, size=3, firsts=("token", None, None))) as same:
                assert (same.folder / "mark").exists()
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fail()
    store = Store(job.store)
    assert json.loads(store.read("microbatch.json") or b"") == {"images": 8}
    notes = [name for name in store.listing() if name.startswith("notes/")]
    assert [b"ran out of memory" in (store.read(name) or b"") for name in notes] == [True]
    with own_copy(job, World()) as mine:
        assert b"ran out of memory" in (mine.folder / "events.jsonl").read_bytes()
        assert not (mine.folder / "mark").exists()
    assert b"ran out of memory" in (store.read("events.jsonl") or b"")


def test_a_problem_on_any_rank_is_raised_on_all(job: Job):
    problem = StorageError("the other one's disk is full", "it has room", "make some")
    with (
        pytest.raises(StorageError, match="the other one's disk"),
        own_copy(job, OfTwo(rank=1, size=2, firsts=("token", None, problem))),
    ):
        pytest.fail("it goes on")


def test_a_primary_that_lives_on_is_told_to_end_and_not_waited_for_for_ever(job: Job, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(writer, "SOON_SECONDS", 0.1)
    monkeypatch.setattr(writer, "WRITER_SECONDS", 0.1)
    folder = runs_here(job.spec.runs) / ".ranks" / "a"
    folder.mkdir(parents=True)
    with writer_lock(folder), pytest.raises(RunError, match="Another process writes"), own_copy(job, World()):
        pytest.fail("two write")
    assert mark_of(folder)


def test_workers_of_a_command_that_was_taken_over_take_nothing_back(job: Job):
    """Ray starts them again, and their driver has not noticed yet."""
    store = Store(job.store)
    lend(store, "another")
    store.write("writer.json", b"another's")
    with pytest.raises(RunError, match="taken over by another command"), own_copy(job, World()):
        pytest.fail("it goes on")
    assert store.read("writer.json") == b"another's"


def test_a_store_that_is_away_when_workers_start_costs_time_and_not_the_run(
    job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    pauses: list[float] = []
    opened = Store._open

    def away(store: Store) -> Any:
        if sum(pauses) < 300:
            raise OSError("no route to host")
        return opened(store)

    monkeypatch.setattr("distcifar.store.time.sleep", pauses.append)
    monkeypatch.setattr(Store, "_open", away)
    with own_copy(job, World()) as mine:
        assert len(read_rows(mine.folder)) == 3
    assert 300 <= sum(pauses) < 400
    assert capsys.readouterr().err.count("no route to host") == 1
    monkeypatch.setattr(pushing, "FLUSH_SECONDS", 0.0)
    with pytest.raises(StorageError, match="The end of the run is not in"), own_copy(job, World()) as mine:
        append_event(mine.folder, "failure", "to be stored")
        pauses.clear()
    assert 0 < sum(pauses) < 60, "a training does not wait for it"


def test_without_a_run_there_is_nothing_to_go_on_with(job: Job):
    lend(Store(f"{job.store}-x"), "launch")
    with pytest.raises(StorageError, match="holds no run"), own_copy(replace(job, store=f"{job.store}-x"), World()):
        pytest.fail("it goes on")
