"""Launches of runs at a URL, with a training that is none: what is stored, what is refused, and what goes on."""

import itertools
import json
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from distcifar import store as store_module
from distcifar.cluster import launch as launching
from distcifar.cluster.job import Announce, Job, Listener
from distcifar.cluster.launch import RunResult, launch
from distcifar.cluster.stopping import StopRequest, stop_on_signals
from distcifar.cluster.stored import lease, pushing, storage
from distcifar.cluster.stored.layout import whole_folders
from distcifar.cluster.stored.mirror import Mirror
from distcifar.cluster.stored.places import Marks, require_folder, runs_here
from distcifar.cluster.stored.storage import StoredCopy
from distcifar.config import RunSpec
from distcifar.errors import ConfigError, DistcifarError, RunError, StorageError
from distcifar.store import Store
from distcifar.tracking.journal import append_event, read_events, read_rows
from tests.support.fake_run import DATA, DEBUG, FakeRun
from tests.support.memory_store import MemoryStore
from tests.support.object_store import ObjectStore, object_store

PER_EPOCH = 3
LASTING = ("checkpoints/", "model/", "metrics.jsonl", "summary.json", "recipe.json")


@pytest.fixture(scope="module")
def s3() -> Iterator[ObjectStore]:
    with object_store() as found:
        yield found


class Place:
    """A store that can be away, and machines that have nothing but it in common."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.patch, self.away = folder, monkeypatch, False
        self.said: list[str] = []
        self.rows: list[dict[str, Any]] = []
        self.during: Callable[[Job], None] = lambda job: None
        self.url = (folder / "store").as_uri()
        again = Store._again

        def reached(store: Store, name: str, action: Any) -> Any:
            if self.away:
                raise StorageError(f"{store.url} does not answer", "It does", "Wait")
            return again(store, name, action)

        monkeypatch.setattr(Store, "_again", reached)
        self.machine("first")

    def machine(self, name: str) -> None:
        """The commands that follow are typed on another machine."""
        self.patch.setenv("HOME", str(self.folder / name))

    def here(self, name: str = "a") -> Path:
        return runs_here(self.url) / name

    def stored(self, name: str = "a") -> dict[str, bytes]:
        root = self.folder / "store" / name
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}

    def launch(self, steps: int = 6, **spec: Any) -> RunResult:
        """What the command does; `during` runs when half of the steps are done."""
        spec = {"name": "a", "runs": self.url, "device": "cpu", "wandb": "disabled"} | spec

        def fit(job: Job, listen: Listener, announce: Announce) -> dict[str, Any]:
            with stop_on_signals(StopRequest(job.folder), announce):
                return self._train(job, steps)

        with pytest.MonkeyPatch.context() as patch:
            prepared = SimpleNamespace(folder=self.folder / "data", digest=DATA)
            patch.setattr(launching, "shared_data", lambda *_, **__: prepared)
            patch.setattr(launching, "collect_facts", lambda *_: {"data_folder": "/d", "data_digest": DATA})
            patch.setattr(launching, "_fitting", lambda spec: fit)
            return launch(DEBUG, RunSpec(**spec), listen=self.rows.append, announce=self.said.append)

    def _train(self, job: Job, steps: int) -> dict[str, Any]:
        run = FakeRun(job.folder, per_epoch=PER_EPOCH)
        found = sorted((job.folder / "checkpoints").glob("step-*"))
        if found:
            run.back_to(int(found[-1].name.removeprefix("step-")))
        else:
            run.begin()
        request, half = StopRequest(job.folder), (run.step + steps) // 2
        while run.step < steps:
            run.go(1)
            if run.step == half:
                self.during(job)
            if StopRequest(job.folder).made() or request.made():
                run.save()
                return {"stopped": run.step}
        return {"summary": run.finish()}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setattr(lease, "WATCH_SECONDS", 0.2)
    monkeypatch.setattr(pushing, "PUSH_SECONDS", 0.02)
    monkeypatch.setattr(pushing, "FLUSH_SECONDS", 0.1)
    return Place(tmp_path, monkeypatch)


def fail(job: Job) -> None:
    raise RuntimeError("nothing works")


def lease_of(launch: str, store: Store) -> None:
    """That command holds the run."""
    store.write("launch.json", json.dumps({"host": "h", "pid": 1, "launch": launch, "beat": 0}).encode())


def held(store: MemoryStore) -> dict[str, bytes]:
    """What is stored of a run but its events, by the names that it has in a run directory."""
    names = {place: name for name, place in whole_folders(store.objects).items()}
    found = {}
    for name, content in store.objects.items():
        place, slash, last = name.rpartition("/")
        found[names.get(place, place) + slash + last] = content
    return {name: content for name, content in found.items() if name.startswith(LASTING)}


def wait(done: Callable[[], Any]) -> None:
    """Returns once `done()`, within ten seconds."""
    until = time.monotonic() + 10
    while not done():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_run_is_stored_whole_and_the_lease_is_given_back(place: Place):
    result = place.launch()
    assert result.place == f"{place.url}/a"
    assert result.folder == place.here()
    stored = place.stored()
    assert stored.pop("writer.json")
    assert stored == {
        path.relative_to(place.here()).as_posix(): path.read_bytes()
        for path in place.here().rglob("*")
        if path.is_file()
    }
    (place.here() / "curves.png").write_bytes(b"png")
    result.keep("curves.png")
    assert place.stored()["curves.png"] == b"png"


@pytest.mark.parametrize("machine", ["first", "other"])
def test_a_run_that_failed_goes_on_from_either_machine(place: Place, machine: str):
    place.during = fail
    with pytest.raises(RuntimeError, match="nothing works"):
        place.launch(10)
    assert "launch.json" not in place.stored()
    assert json.loads(place.stored()["events.jsonl"].splitlines()[-1])["kind"] == "failed"
    place.machine(machine)
    place.during = lambda job: None
    result = place.launch(10)
    assert result.summary is not None
    assert [row["step"] for row in read_rows(place.here()) if row["kind"] == "step"] == list(range(1, 11))
    assert [event["kind"] for event in read_events(place.here())] == ["start", "failed", "continue", "finished"]


def test_in_a_bucket_over_a_line_that_is_cut_it_is_the_same(place: Place, s3: ObjectStore):
    place.patch.setattr(store_module, "PAUSE_SECONDS", 0.01)

    def cut(job: Job) -> None:
        s3.line.cut_after, s3.line.cuts = [100, 1500, 700], 0
        for _ in range(8):
            s3.line.cut()
            time.sleep(0.03)
        raise RuntimeError("nothing works")

    place.url, place.during = s3.url("runs", over_line=True), cut
    with pytest.raises(RuntimeError, match="nothing works"):
        place.launch(10)
    before = read_rows(place.here())
    place.machine("other")
    place.url, place.during = s3.url("runs"), lambda job: None
    assert place.launch(10).place == "s3://bucket/runs/a"
    assert s3.line.cuts
    assert [event["kind"] for event in read_events(place.here())] == ["start", "failed", "continue", "finished"]
    rows = read_rows(place.here())
    assert rows[: len(before) - 2] == before[:-2]
    assert [row["step"] for row in rows if row["kind"] == "step"] == list(range(1, 11))


def test_a_finished_run_is_refused_from_another_machine_and_stays_as_it_is(place: Place):
    place.launch()
    stored = place.stored()
    place.machine("other")
    with pytest.raises(StorageError, match="The run 'a' is finished"):
        place.launch()
    assert stored | {"writer.json": b""} == place.stored() | {"writer.json": b""}


def test_overwrite_replaces_what_is_stored(place: Place):
    place.launch(9)
    place.machine("other")
    place.during = fail
    with pytest.raises(RuntimeError):
        place.launch(4, overwrite=True)
    names = set(place.stored())
    assert "summary.json" not in names
    assert not [name for name in names if name.startswith(("model/", "checkpoints/step-00000009"))]


def test_a_mistake_leaves_nothing_there(place: Place):
    with pytest.raises(DistcifarError):
        place.launch(resume=str(place.folder / "nothing"))
    assert place.stored() == {}
    (place.folder / "store" / "b").mkdir(parents=True)
    (place.folder / "store" / "b" / "train.beton").write_text("x")
    with pytest.raises(StorageError, match=r"/b holds other files\..*--name"):
        place.launch(name="b")
    assert place.stored("b") == {"train.beton": b"x"}


def test_while_the_store_is_away_training_goes_on(place: Place):
    def away(job: Job) -> None:
        place.away = True
        wait(lambda: any("Training goes on" in text for text in place.said))
        place.away = False
        with open(job.folder / "events.jsonl", "a"):
            wait(lambda: any("answers again" in text for text in place.said))

    place.during = away
    assert place.launch().summary is not None
    assert len([text for text in place.said if "Training goes on" in text]) == 1
    assert "summary.json" in place.stored()


def test_an_end_that_cannot_be_stored_is_told_and_goes_on_from_the_copy(place: Place):
    def away(job: Job) -> None:
        place.away = True

    place.during = away
    with pytest.raises(StorageError, match=r"The end of the run is not in .*/a, but in .*first.*Type the same command"):
        place.launch(10)
    assert "summary.json" not in place.stored()
    assert len(list((place.here() / "checkpoints").glob("step-*"))) > 1
    steps = len(read_rows(place.here()))
    place.away, place.during = False, lambda job: None
    (place.here() / "summary.json").unlink()  # as if it had been stopped then
    place.launch(10)
    assert read_events(place.here())[-2]["text"].startswith("at step 9"), "not at the last one that was stored"
    assert len(read_rows(place.here())) == steps
    assert "summary.json" in place.stored()


def test_a_copy_that_another_machine_has_overtaken_is_not_gone_on_from(place: Place):
    def away(job: Job) -> None:
        place.away = True

    place.during = away
    with pytest.raises(StorageError):
        place.launch(20)
    place.machine("other")
    place.away, place.during = False, fail
    with pytest.raises(RuntimeError):
        place.launch(17)
    stored = place.stored()
    place.machine("first")
    place.during = lambda job: None
    with pytest.raises(StorageError, match="The run 'a' exists"):
        place.launch(resume="never")
    assert (place.here() / "events.jsonl").read_bytes() == stored["events.jsonl"]


def test_who_is_taken_over_stops_and_leaves_the_rest_to_the_other(place: Place):
    def taken(job: Job) -> None:
        Mirror(job.folder, Store(place.url).below("a"), "other").take()
        wait(lambda: StopRequest(job.folder).made())

    place.during = taken
    with pytest.raises(RunError, match="taken over by another command"):
        place.launch(100)
    assert place.stored()["writer.json"] == b"other"
    assert b"failed" not in place.stored()["events.jsonl"]


def test_a_second_command_is_refused_while_the_first_lives(place: Place):
    place.patch.setattr(lease, "BEAT_SECONDS", 0.05)
    found: list[BaseException] = []
    store = Store(place.url).below("a")

    def second(job: Job) -> None:
        place.machine("other")
        try:
            with lease.leased(store, "a", "second", (), place.said.append, beat=1.0):
                pytest.fail("two hold it")
        except RunError as error:
            found.append(error)
        place.machine("first")

    place.patch.setattr(storage, "leased", lambda *words: lease.leased(*words, beat=0.01))
    place.during = second
    place.launch()
    assert f"process {os.getpid()}" in str(found[0])


def test_a_stop_is_handed_to_workers_elsewhere_and_what_they_leave_comes_back(place: Place, tmp_path: Path):
    """The workers are a thread with a copy of their own; the driver follows."""
    place.patch.setattr(launching, "_is_local", lambda spec: False)
    place.patch.setattr(storage, "FOLLOW_SECONDS", 0.05)
    place.patch.setattr(pushing, "STOP_SECONDS", 0.05)
    workers = tmp_path / "workers" / "a"
    train = Place._train

    def on_workers(self: Place, job: Job, steps: int) -> dict[str, Any]:
        assert job.store == f"{place.url}/a"
        from distcifar.cluster.stored.pull import pull_to_go_on
        from distcifar.cluster.stored.pushing import Pusher

        mirror = Mirror(workers, Store(job.store), "ranks")
        mirror.take()
        assert pull_to_go_on(mirror)
        with Pusher(mirror, place.said.append, obeys=True):
            return train(self, job.__class__(**(vars(job) | {"folder": workers})), steps)

    place.patch.setattr(Place, "_train", on_workers)

    def stop(job: Job) -> None:
        threading.Timer(0.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
        wait(lambda: StopRequest(workers).made())

    place.during = stop
    result = place.launch(10)
    assert result.stopped_at == 5
    told = [(row["kind"], row["step"]) for row in place.rows]
    assert told == [("start", 0), ("step", 1), ("step", 2), ("step", 3), ("epoch", 3), ("step", 4), ("step", 5)], (
        "nobody has followed here: all of it came with the last look"
    )
    assert (place.here() / "checkpoints" / "step-00000005").is_dir()
    assert len(read_rows(place.here())) == len(read_rows(workers)) == 6
    assert json.loads(place.stored()["events.jsonl"].splitlines()[-1])["text"] == "at step 5 (SIGTERM)"
    shutil.rmtree(workers)
    place.during = lambda job: None
    assert place.launch(10).summary is not None
    assert read_rows(place.here())[-1]["step"] == 10
    assert (place.here() / "model" / "model.safetensors").exists()
    assert "stop" not in place.stored()


@pytest.fixture
def apart(place: Place, tmp_path: Path) -> Path:
    """The workers' folder: they are a thread with a copy of their own, and the driver follows."""
    place.patch.setattr(launching, "_is_local", lambda spec: False)
    place.patch.setattr(storage, "FOLLOW_SECONDS", 0.05)
    workers, train = tmp_path / "workers" / "a", Place._train

    def on_workers(self: Place, job: Job, steps: int) -> dict[str, Any]:
        from distcifar.cluster.stored.pull import pull_to_go_on
        from distcifar.cluster.stored.pushing import Pusher

        shutil.rmtree(workers, ignore_errors=True)
        mirror = Mirror(workers, Store(job.store), f"ranks of {job.launch}")
        mirror.take()
        assert pull_to_go_on(mirror)
        with Pusher(mirror, place.said.append, obeys=True):
            return train(self, job.__class__(**(vars(job) | {"folder": workers})), steps)

    place.patch.setattr(Place, "_train", on_workers)
    return workers


@pytest.mark.parametrize(
    "problem", [OSError(28, "No space left on device"), StorageError("away", "it answers", "wait")]
)
@pytest.mark.parametrize("machine", ["first", "other"])
def test_what_cannot_be_brought_to_the_command_stays_where_it_is(
    place: Place, apart: Path, problem: Exception, machine: str
):
    """Its copy has the checkpoint that it has started from, and none of the workers' since."""
    place.during = fail
    with pytest.raises(RuntimeError):
        place.launch(4)
    before = {name for name in place.stored() if name.startswith("checkpoints/")}
    pull = storage.Follower.pull

    def refuse(follower: Any, *, whole: bool = False) -> None:
        if whole:
            raise problem
        pull(follower)

    place.during = lambda job: None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage.Follower, "pull", refuse)
        with pytest.raises(StorageError, match=r"away|cannot be written: No space.*nothing is lost"):
            place.launch(7)
    stored = place.stored()
    newest = max((apart / "checkpoints").glob("step-*")).name
    assert {"summary.json", "model/manifest.json", f"checkpoints/{newest}/manifest.json"} <= stored.keys()
    assert f"checkpoints/{newest}/manifest.json" not in before
    assert not (place.here() / "checkpoints" / newest).exists()
    place.machine(machine)
    with pytest.raises(StorageError, match="The run 'a' is finished"):
        place.launch(7)
    assert place.stored().keys() == stored.keys()
    assert read_rows(place.here())[-1]["step"] == 7


@dataclass
class Leaving(MemoryStore):
    """Answers `left` times more."""

    left: float = math.inf

    def __getattribute__(self, name: str) -> Any:
        if name in ("read", "read_at", "write", "delete", "listing"):
            if not self.left:
                raise StorageError("away", "it answers", "wait")
            self.left -= 1
        return super().__getattribute__(name)


def stored_by_workers(folder: Path) -> tuple[MemoryStore, MemoryStore]:
    """A run as a command finds it, and as its workers leave it: finished, with other checkpoints."""
    found, finished = MemoryStore(), MemoryStore()
    run = FakeRun(folder, per_epoch=PER_EPOCH)
    run.describe()
    run.begin()
    for store, steps in ((found, PER_EPOCH), (finished, 2 * PER_EPOCH)):
        run.go(steps)
        if store is finished:
            run.finish()
        mirror = Mirror(folder, store, "ranks")
        mirror.take()
        mirror.push()
    return found, finished


def command(folder: Path, store: MemoryStore, launch: str) -> StoredCopy:
    """One that holds the lease and has begun."""
    lease_of(launch, store)
    copy = StoredCopy(Mirror(folder, store, launch), Marks(folder), lambda text: None)
    copy.begin()
    copy.claimed()
    return copy


def test_whenever_the_store_goes_away_in_the_end_it_keeps_what_the_workers_have_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """After any number of answers. When the command stores its own end the store is back, or the command is killed."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setattr(storage, "LOOK_SECONDS", 60.0)  # the last look is the first one
    found, finished = stored_by_workers(tmp_path / "workers")
    folder, wanted, away = tmp_path / "driver", held(finished), True
    for answers in itertools.count():
        shutil.rmtree(folder, ignore_errors=True)
        store = Leaving(objects=dict(found.objects), versions=dict(found.versions))
        copy = command(folder, store, "first")
        try:
            with copy.training(lambda row: None, apart=True):
                store.objects, store.versions = dict(finished.objects), dict(finished.versions)
                lease_of("first", store)
                store.left = answers
            away = False
        except StorageError:
            append_event(folder, "failed", "away")
        store.left = math.inf
        if answers % 2:
            copy.end()
        assert held(store) == wanted, answers
        command(folder, store, "next").end()
        assert held(store) == wanted, answers
        events = [event["kind"] for event in read_events(folder)]
        assert events.count("finished") == 1
        assert events.count("failed") == (away and answers % 2), answers
        if not away:
            break
    assert answers > 10


def test_a_disk_that_has_no_room_for_the_marks_either_is_told_as_such(place: Place, apart: Path):
    def fill(job: Job) -> None:
        place.patch.setattr(Marks, "write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left", "x")))

    place.during = fill
    with pytest.raises(StorageError, match=r"cannot be written: No space left.*nothing is lost"):
        place.launch()


def test_what_the_command_notes_is_known_though_it_is_killed(place: Place, apart: Path):
    def kill(job: Job) -> None:
        append_event(place.here(), "node lost", "the driver's own")
        wait(lambda: [*(place.folder / "store" / "a" / "notes").glob("[!.]*")])
        raise KeyboardInterrupt  # twice: it leaves as it is

    place.during = kill
    with pytest.raises(KeyboardInterrupt):
        place.launch()
    place.machine("other")
    place.during = lambda job: None
    place.launch()
    assert [event["kind"] for event in read_events(place.here())].count("node lost") == 1
    assert b"node lost" in place.stored()["events.jsonl"]
    assert not [name for name in place.stored() if name.startswith("notes/")]


def test_a_command_that_has_missed_the_end_leaves_its_events_and_nothing_older(place: Place, apart: Path):
    place.during = fail
    with pytest.raises(RuntimeError):
        place.launch(4)

    def halve(job: Job) -> None:
        (place.here() / "microbatch.json").write_text("64")
        (job.folder / "microbatch.json").write_text("32")

    place.during = halve
    place.patch.setattr(
        storage.Follower, "pull", lambda *_, **__: (_ for _ in ()).throw(StorageError("away", "it answers", "wait"))
    )
    with pytest.raises(StorageError, match="away"):
        place.launch(9)
    assert place.stored()["microbatch.json"] == b"32"


def vanish(place: Place, meanwhile: Callable[[], Any] = lambda: None) -> None:
    """A run that is gone on with loses its copy, at once: what goes file by file is removed there file by file."""
    place.during = fail
    with pytest.raises(RuntimeError):
        place.launch(10)

    def rename(job: Job) -> None:
        job.folder.rename(place.folder / "elsewhere")
        meanwhile()
        raise RunError("it", "does", "not")

    place.during = rename
    with pytest.raises(RunError, match="it"):
        place.launch(20)


def test_a_copy_that_vanishes_takes_nothing_with_it(place: Place):
    vanish(place)
    place.during = lambda job: None
    assert place.launch(20).summary is not None
    assert [row["step"] for row in read_rows(place.here()) if row["kind"] == "step"] == list(range(1, 21))


@pytest.mark.parametrize("lost", ["checkpoints", "metrics.jsonl"])
def test_rows_without_checkpoints_and_checkpoints_without_rows_stay_as_well(place: Place, lost: str):
    vanish(place, lambda: (place.folder / "store" / "a" / lost).rename(place.folder / "lost"))
    left = {name.partition("/")[0] for name in place.stored()}
    assert {"recipe.json", "checkpoints", "metrics.jsonl"} - {lost} <= left


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_a_run_that_fails_before_its_first_step_leaves_nothing_there(
    place: Place, where: str, request: pytest.FixtureRequest
):
    def begin(self: Place, job: Job, steps: int) -> dict[str, Any]:
        FakeRun(job.folder, per_epoch=PER_EPOCH).begin()
        assert (job.folder / "checkpoints" / "step-00000000").is_dir()
        wait((place.folder / "store" / "a" / "checkpoints" / "step-00000000" / "manifest.json").exists)
        raise RunError("no GPU", "one is needed", "buy one")

    place.patch.setattr(Place, "_train", begin)
    if where == "elsewhere":
        request.getfixturevalue("apart")
    with pytest.raises(RunError, match="no GPU"):
        place.launch()
    assert place.stored() == {}


def test_a_command_that_was_taken_over_while_it_looked_takes_nothing_back(place: Place):
    place.during = fail
    with pytest.raises(RuntimeError):
        place.launch(9)
    place.machine("other")
    pull = storage.pull_to_go_on

    def slow(mirror: Mirror) -> bool:
        found = pull(mirror)
        store = mirror.store
        lease_of("third", store)
        store.write("writer.json", b"third")
        return found

    place.patch.setattr(storage, "pull_to_go_on", slow)
    place.during = lambda job: None
    with pytest.raises(RunError, match="taken over"):
        place.launch(9)
    assert place.stored()["writer.json"] == b"third"


def test_a_command_that_was_taken_over_while_its_workers_train_takes_nothing_back(place: Place, apart: Path):
    def take(job: Job) -> None:
        store = Store(job.store)
        lease_of("third", store)
        store.write("writer.json", b"third")

    place.during = take
    with pytest.raises(RunError, match="taken over"):
        place.launch()
    assert place.stored()["writer.json"] == b"third"
    assert "summary.json" not in place.stored()


def test_an_end_that_cannot_be_stored_is_not_tried_without_a_pause(place: Place):
    tries = []

    def away(mirror: Mirror, **_: Any) -> bool:
        tries.append(mirror)
        raise StorageError("away", "it answers", "wait")

    place.during = lambda job: place.patch.setattr(Mirror, "push", away)
    with pytest.raises(StorageError, match="The end of the run is not in"):
        place.launch()
    assert 2 < len(tries) < 30


def test_an_end_that_cannot_be_read_here_is_told_at_once_as_such(place: Place):
    def vanish(job: Job) -> None:
        place.patch.setattr(pushing, "FLUSH_SECONDS", 60.0)
        place.patch.setattr(Mirror, "push", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "denied", "x")))

    place.during = vanish
    begun = time.monotonic()
    with pytest.raises(RunError, match=r"The end of the run cannot be read: .*denied"):
        place.launch()
    assert time.monotonic() - begun < 30


def test_programs_that_read_folders_say_where_this_machine_has_one():
    with pytest.raises(ConfigError, match=rf"'s3://b/runs' is a URL.*{runs_here('s3://b/runs')}.*aws s3 sync"):
        require_folder("s3://b/runs")
    assert require_folder("runs") == "runs"
