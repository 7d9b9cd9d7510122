"""A run at a URL: what is there can be gone on from, whatever moment the process that pushes it dies at."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distcifar.cluster.stored.layout import free_place, is_ours, leftovers, whole_folders
from distcifar.cluster.stored.mirror import Mirror
from distcifar.cluster.stored.pull import Follower, hand_over, pull_to_go_on
from distcifar.errors import RunError
from distcifar.sealed import MODEL_FILES, verify
from distcifar.tracking.journal import JournalFollower, append_event, read_events, read_rows
from distcifar.training.checkpoint import newest_good
from tests.support.fake_run import FakeRun
from tests.support.memory_store import MemoryStore

PER_EPOCH = 3


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    """No power is cut here: thousands of files are not flushed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


Story = list[tuple[str, int]]

# Each part of a run's life that changes what is stored, one after another.
LIFE: Story = [
    ("describe", 0), ("begin", 0), ("go", 2), ("go", 4), ("save", 0), ("anew", 1), ("go", 5), ("back", 0), ("go", 7),
    ("back", 1), ("finish", 0), ("extend", 0), ("go", 2), ("finish", 0), ("anew", 2), ("finish", 0),
]  # fmt: skip


def lived(run: FakeRun, what: str, number: int) -> None:
    """One part of a run's life. Content that differs from an older one's at the same step is told by its salt."""
    if what == "describe":
        run.describe()
    elif what == "begin":
        run.begin()
    elif what == "go":
        run.go(number)
    elif what == "save":
        run.save(keep=1)
    elif what == "anew":  # a checkpoint of the same step with another content, the only one that is kept
        run._card = run._card | {"salt": number}
        run.save(keep=1)
    elif what == "back":  # as a rollback does, to the oldest checkpoint that there is, or the one after
        run._card = run._card | {"salt": 100 + number}
        steps = sorted(int(path.name[5:]) for path in (run.folder / "checkpoints").glob("step-*"))
        run.back_to(steps[number % len(steps)], salt=7)
    elif what == "finish":
        run._card = run._card | {"end": run.step, "number": number}
        run.finish()
    elif what == "extend" and (run.folder / "summary.json").exists():
        (run.folder / "summary.json").unlink()
        recipe = json.loads((run.folder / "recipe.json").read_text())
        (run.folder / "recipe.json").write_text(json.dumps(recipe | {"epochs": recipe["epochs"] + 1}))


def live(folder: Path, story: Story) -> tuple[MemoryStore, list[tuple[int, int]]]:
    """What is stored when `story` was lived through and each part of it pushed.

    Also, for each push, after how many operations it was done, and the step of the newest checkpoint then.
    """
    store = MemoryStore()
    mirror, pushes = Mirror(folder, store, "me"), []
    mirror.take()
    run = FakeRun(folder, per_epoch=PER_EPOCH, part_bytes=1200)
    for what, number in story:
        lived(run, what, number)
        mirror.push(tables=False)
        newest = max((int(path.name[5:]) for path in (folder / "checkpoints").glob("step-*")), default=0)
        pushes.append((len(store.log), newest))
    return store, pushes


def require_resumable(store: MemoryStore, folder: Path, least: int | None) -> tuple[Mirror, int]:
    """Whoever pulls has a run with a good checkpoint, of step `least` or later; all rows up to it, once each.

    least: None where there need not be a run. Returns what was pulled, and the step.
    """
    shutil.rmtree(folder, ignore_errors=True)
    mirror = Mirror(folder, store, "other")
    if not pull_to_go_on(mirror):
        assert least is None, "a run that was stored whole is there"
        return mirror, 0
    checkpoint, problems = newest_good(folder / "checkpoints")
    assert not problems
    step = checkpoint.step if checkpoint else 0
    assert step >= (least or 0)
    rows = [row["step"] for row in read_rows(folder) if row["kind"] == "step"]
    assert [each for each in rows if each <= step] == list(range(1, step + 1)), "each row once, in order"
    epochs = [row["epoch"] for row in read_rows(folder) if row["kind"] == "epoch" and row["step"] <= step]
    assert epochs == list(range(1, step // PER_EPOCH + 1))
    if (folder / "summary.json").exists():
        verify(folder / "model", MODEL_FILES)
    return mirror, step


def go_on_from(mirror: Mirror, step: int) -> None:
    """It goes on, and then the store has what the folder has and nothing else."""
    mirror.take()
    run = FakeRun(mirror.folder, per_epoch=PER_EPOCH, part_bytes=1200)
    (mirror.folder / "summary.json").unlink(missing_ok=True)
    run.back_to(step)
    run.go(PER_EPOCH)
    mirror.push()
    assert stored_run(mirror.store) == run_here(mirror.folder)


def run_here(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "group"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def stored_run(store: MemoryStore) -> dict[str, bytes]:
    """The objects by the names that they have in a run directory."""
    names = {place: name for name, place in whole_folders(store.objects).items()}
    found = {}
    for name, content in store.objects.items():
        place, slash, last = name.rpartition("/")
        found[names.get(place, place) + slash + last] = content
    del found["writer.json"]
    return found


def require_resumable_whenever_it_is_killed(place: Path, story: Story, moments: Iterable[int] | None = None) -> None:
    store, pushes = live(place / "here", story)
    for number in range(len(store.log) + 1) if moments is None else {each % (len(store.log) + 1) for each in moments}:
        done = [newest for count, newest in pushes if count <= number]
        least = min(done[-1], *(newest for _, newest in pushes[len(done) :][:1]), 1 << 30) if done else None
        mirror, step = require_resumable(store.at(number), place / "there", least)
        if done and number % 5 == 0:
            go_on_from(mirror, step)


def test_killed_after_any_operation_what_is_stored_can_be_gone_on_from(tmp_path: Path):
    store, _ = live(tmp_path / "here", LIFE)
    assert any("~1" in name for name in store.log), "a checkpoint was written anew beside its older one"
    assert any("metrics-000002" in name for name in store.log), "the metrics have parts"
    assert stored_run(store) == {n: c for n, c in run_here(tmp_path / "here").items() if not n.endswith(".csv")}
    shutil.rmtree(tmp_path / "here")
    require_resumable_whenever_it_is_killed(tmp_path, LIFE)


PARTS = st.one_of(
    st.tuples(st.just("go"), st.integers(1, 7)),
    st.tuples(st.sampled_from(["save", "finish", "extend"]), st.just(0)),
    st.tuples(st.just("anew"), st.integers(1, 9)),
    st.tuples(st.just("back"), st.integers(0, 2)),
)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(PARTS, min_size=2, max_size=8), st.lists(st.integers(0, 10**6), min_size=6, max_size=6))
def test_and_so_in_any_other_life(tmp_path_factory: pytest.TempPathFactory, parts: Story, moments: list[int]):
    place = tmp_path_factory.mktemp("life")
    require_resumable_whenever_it_is_killed(place, [("describe", 0), ("begin", 0), *parts], moments)
    shutil.rmtree(place)


def a_run(folder: Path, steps: int = 5) -> FakeRun:
    run = FakeRun(folder, per_epoch=PER_EPOCH)
    run.describe()
    run.begin()
    run.go(steps)
    return run


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def mirror(tmp_path: Path, store: MemoryStore) -> Mirror:
    found = Mirror(tmp_path / "here", store, "me")
    found.take()
    return found


def test_only_what_changed_is_pushed(mirror: Mirror, store: MemoryStore):
    run = a_run(mirror.folder)
    assert mirror.push()
    before = len(store.log)
    assert not mirror.push()
    assert len(store.log) == before
    run.go(1)
    mirror.push(tables=False)
    new = store.log[before:]
    assert new[0] == "write metrics.jsonl", "rows before what they belong to"
    assert new[1:6] == [f"write checkpoints/step-00000006/{name}" for name in sorted(os.listdir(
        mirror.folder / "checkpoints" / "step-00000006")) if name != "manifest.json"]  # fmt: skip
    assert new[6:8] == [
        "write checkpoints/step-00000006/manifest.json",
        "delete checkpoints/step-00000000/manifest.json",
    ]


def test_what_is_of_one_machine_stays_there(mirror: Mirror, store: MemoryStore):
    run = a_run(mirror.folder)
    for name in ("ray/x", "ranks/0.json", "wandb/log", ".aside-1-x", "group", "stop", ".upload/state/x"):
        (run.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (run.folder / name).write_text("x")
    (run.folder / "checkpoints" / ".aside-2-step-00000009").mkdir()
    mirror.push()
    assert set(store.objects) == {
        name
        for name in (*run_here(run.folder), "writer.json")
        if not name.startswith(("ray", "ranks", "wandb", ".")) and name not in ("stop", "group")
    }


def test_a_copy_is_made_exactly_like_the_store(tmp_path: Path, mirror: Mirror, store: MemoryStore):
    a_run(mirror.folder)
    mirror.push()
    stale = a_run(tmp_path / "there", steps=14)
    stale.finish()
    (stale.folder / "microbatch.json").write_text("{}")
    damaged = stale.folder / "checkpoints" / "step-00000003"
    shutil.copytree(mirror.folder / "checkpoints" / "step-00000003", damaged)
    (damaged / "state.safetensors").write_bytes(b"x")
    assert pull_to_go_on(Mirror(stale.folder, store, "other"))
    tables = {"metrics.csv"}
    here, there = run_here(mirror.folder), run_here(stale.folder)
    assert {n: c for n, c in here.items() if n not in tables} == there


def test_a_folder_that_vanishes_takes_nothing_with_it(mirror: Mirror, store: MemoryStore):
    run = a_run(mirror.folder)
    mirror.push()
    before = dict(store.objects)
    shutil.rmtree(run.folder / "checkpoints")
    mirror.push()
    assert store.objects == before
    shutil.rmtree(run.folder)
    with pytest.raises(FileNotFoundError):
        mirror.push()
    run.folder.mkdir()
    mirror.push()
    assert store.objects == before


def test_who_was_taken_over_writes_nothing_more(mirror: Mirror, store: MemoryStore):
    run = a_run(mirror.folder)
    mirror.push()
    Mirror(run.folder, store, "other").take()
    before = dict(store.objects)
    run.go(3)
    with pytest.raises(RunError, match="taken over by another command"):
        mirror.push()
    with pytest.raises(RunError):
        mirror.clear()
    assert store.objects == before


def test_what_a_late_writer_has_left_is_removed(mirror: Mirror, store: MemoryStore):
    run = a_run(mirror.folder)
    mirror.push()
    for name in ("state.safetensors", "manifest.json"):
        store.write(f"checkpoints/step-00000099/{name}", b"{}")
    run.go(1)
    mirror.push()
    assert set(whole_folders(store.objects)) == {"checkpoints/step-00000003", "checkpoints/step-00000006"}
    assert not leftovers(store.objects, list(whole_folders(store.objects)))


def test_a_checkpoint_that_is_pruned_while_it_goes_arrives_whole(mirror: Mirror, store: MemoryStore):
    run = a_run(mirror.folder, steps=2)
    mirror.push()
    run.go(1)
    written, removed = store.write, []

    def prune(name: str, content: object) -> None:
        if name.endswith("model.json") and not removed:
            removed.append(name)
            shutil.rmtree(run.folder / "checkpoints" / "step-00000003")
        written(name, content)  # type: ignore[arg-type]

    store.write = prune  # type: ignore[method-assign, assignment]
    mirror.push()
    folder = run.folder.with_name("there")
    assert pull_to_go_on(Mirror(folder, store, "other"))
    checkpoint, problems = newest_good(folder / "checkpoints")
    assert removed, "it was removed while it was written"
    assert checkpoint is not None
    assert (checkpoint.step, problems) == (3, [])


def test_files_that_change_their_names_meanwhile_are_pushed_as_they_were_at_one_moment(
    mirror: Mirror, store: MemoryStore
):
    run = FakeRun(mirror.folder, per_epoch=PER_EPOCH, part_bytes=600)
    run.describe()
    run.begin()
    run.go(2)
    mirror.push()
    written = store.write

    def rotate(name: str, content: object) -> None:
        run.go(1)  # a part gets its number every few rows
        written(name, content)  # type: ignore[arg-type]

    store.write = rotate  # type: ignore[method-assign, assignment]
    for _ in range(6):
        run.go(1)
        mirror.push(tables=False)
        folder = run.folder.with_name("there")
        shutil.rmtree(folder, ignore_errors=True)
        pull_to_go_on(Mirror(folder, store, "other"))
        checkpoint, _ = newest_good(folder / "checkpoints")
        assert checkpoint is not None
        steps = [row["step"] for row in read_rows(folder) if row["kind"] == "step"]
        assert steps[: checkpoint.step] == list(range(1, checkpoint.step + 1))


def test_a_follower_tells_each_row_and_each_event_once(tmp_path: Path, mirror: Mirror, store: MemoryStore):
    run = FakeRun(mirror.folder, per_epoch=PER_EPOCH, part_bytes=1200)
    run.describe()
    run.begin()
    mirror.push()
    copy = Mirror(tmp_path / "driver", store, "driver")
    copy.folder.mkdir()
    follower, rows = Follower(copy), []
    follower.pull()
    journal = JournalFollower(copy.folder, from_start=True)
    for number in range(12):
        run.go(1)
        if number == 4:
            run.back_to(3)
        if number == 8:
            append_event(copy.folder, "failure", "the driver's own")
            follower.pull()
        mirror.push(tables=False)
        follower.pull()
        rows += journal.new_rows()
    told = [(row["kind"], row["step"]) for row in rows if row["kind"] in ("step", "epoch")]
    assert told == sorted(set(told), key=lambda place: (place[1], place[0] == "epoch"))
    assert [step for kind, step in told if kind == "step"] == list(range(1, run.step + 1))
    events = [(row["kind"], row["text"]) for row in rows if row["kind"] not in ("step", "epoch")]
    assert events == [("start", "at step 0 with 1 worker(s)"), ("continue", "at step 3 with 1 worker(s)"),
                      ("failure", "the driver's own")]  # fmt: skip
    assert (copy.folder / "events.jsonl").read_bytes().count(b"\n") == 3
    assert b"the driver's own" not in store.objects["events.jsonl"], "the workers would lose what they add meanwhile"
    notes = [content for name, content in store.objects.items() if name.startswith("notes/")]
    assert [json.loads(content)["text"] for content in notes] == ["the driver's own"]
    run.finish()
    mirror.push()
    (copy.folder / "uploads.json").write_text("{}")
    follower.pull(whole=True)
    here = run_here(copy.folder)
    assert here.pop("uploads.json")
    assert here | {"events.jsonl": b""} == run_here(run.folder) | {"events.jsonl": b""}
    copy.take()
    copy.push()
    assert not [name for name in store.objects if name.startswith("notes/")]
    assert store.objects["events.jsonl"].count(b"the driver's own") == 1


def test_what_a_failing_rank_notes_elsewhere_is_known_to_those_that_go_on(
    tmp_path: Path, mirror: Mirror, store: MemoryStore
):
    a_run(mirror.folder)
    mirror.push()
    rank = tmp_path / "rank"
    pull_to_go_on(Mirror(rank, store, "x"))
    append_event(rank, "memory", "rank 1 ran out of memory")
    (rank / "microbatch.json").write_text('{"images": 8}')
    hand_over(rank, store)
    append_event(mirror.folder, "failure", "rank 0")
    mirror.push()
    for _ in range(2):  # also when the next one dies at once
        after = Mirror(tmp_path / "after", store, "after")
        pull_to_go_on(after)
        assert [event["kind"] for event in read_events(after.folder)] == ["start", "failure", "memory"]
        assert json.loads((after.folder / "microbatch.json").read_text()) == {"images": 8}
    after.take()
    after.push()
    assert not [name for name in store.objects if name.startswith("notes/")]
    assert b"memory" in store.objects["events.jsonl"]


def test_a_run_is_removed_beginning_with_what_makes_it_one(mirror: Mirror, store: MemoryStore):
    a_run(mirror.folder).finish()
    mirror.push()
    store.log.clear()
    mirror.clear()
    assert set(store.objects) == {"writer.json"}
    assert store.log[:2] == ["delete recipe.json", "delete summary.json"]


@pytest.mark.parametrize(
    ("objects", "ours"),
    [((), True), (("recipe.json", "x"), True), (("launch.json", "run.json"), True), (("train.beton",), False)],
)
def test_a_place_with_other_files_is_no_run(objects: tuple[str, ...], ours: bool):
    assert is_ours(objects) is ours


@given(st.sets(st.sampled_from([f"checkpoints/step-0000000{s}{v}/{f}" for s in (1, 2) for v in ("", "~1", "~2", "~10")
                                for f in ("manifest.json", "state.json")])))  # fmt: skip
def test_a_free_place_is_found_before_all_that_are_whole(objects: set[str]):
    name = "checkpoints/step-00000001"
    place = free_place(name, objects)
    assert f"{place}/manifest.json" not in objects
    assert whole_folders({*objects, f"{place}/manifest.json"})[name] == place
