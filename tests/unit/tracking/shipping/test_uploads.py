"""Which of a run's files become artifacts: the newest state and the best, never half of one, each once."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from distcifar.sealed import verify
from distcifar.tracking.identity import Identity
from distcifar.tracking.journal import Journal
from distcifar.tracking.shipping import uploads
from distcifar.tracking.shipping.uploads import CURSOR, OUTBOX, Outbox, Upload
from tests.support.fake_run import FakeRun


@pytest.fixture
def run(tmp_path: Path) -> FakeRun:
    found = FakeRun(tmp_path / "run", per_epoch=4)
    found.describe(Identity("run-abc123", "run", "lab"))
    found.begin()
    return found


def outbox(run: FakeRun, policy: uploads.Policy = "state") -> Outbox:
    return Outbox(run.folder, policy)


def names(keys: list[str]) -> list[str]:
    """The keys without their seals."""
    return ["/".join(key.split("/")[:2]) for key in keys]


def send(box: Outbox, *, over: bool = False) -> list[Upload]:
    """Takes everything that is due, as if W&B had it then; versions count from v0."""
    found = []
    for key in box.due(over=over):
        upload = box.take(key)
        found.append(upload)
        box.done(upload, f"v{len(box.sent)}")
    return found


def test_before_the_first_step_nothing_is_due(run: FakeRun):
    assert (run.folder / "checkpoints" / "step-00000000").exists()
    assert outbox(run).due(over=False) == []
    assert outbox(run).due(over=True) == []


def test_the_newest_checkpoint_is_due_and_the_best_before_it(run: FakeRun):
    run.go(4)
    assert names(outbox(run).due(over=False)) == ["state/step-00000004"]
    run.go(16)
    best = run.best * 4
    assert best < 20
    assert names(outbox(run).due(over=False)) == [f"state/step-{best:08d}", "state/step-00000020"]


def test_what_was_sent_is_not_due_again_also_for_another_process(run: FakeRun):
    run.go(20)
    assert len(send(outbox(run))) == 2
    assert outbox(run).due(over=False) == []
    run.go(4)
    assert "state/step-00000024" in names(outbox(run).due(over=False))


@pytest.mark.parametrize("policy", ["none", "model", "state"])
def test_the_policy_says_what_is_sent_and_the_model_waits_for_the_end(run: FakeRun, policy: uploads.Policy):
    run.go(8)
    states = policy == "state"
    assert bool(outbox(run, policy).due(over=True)) == states
    run.finish()
    assert bool(outbox(run, policy).due(over=False)) == states
    kinds = {key.split("/")[0] for key in outbox(run, policy).due(over=True)}
    assert kinds == {"none": set(), "model": {"model"}, "state": {"state", "model"}}[policy]


def test_a_state_is_a_checkpoint_and_the_journal_up_to_it(run: FakeRun):
    run.go(8)
    box = outbox(run)
    key = box.due(over=False)[-1]
    run.go(3)  # the run goes on, and has rows that are not of this checkpoint
    upload = box.take(key)
    verify(upload.folder / "checkpoint")
    inside = upload.folder / "run"
    assert sorted(path.name for path in inside.iterdir()) == ["metrics.jsonl", "run.json", "tracking.json"]
    assert [(row["kind"], row["step"]) for row in Journal(inside).rows()] == [
        (row["kind"], row["step"]) for row in run.rows if row["step"] <= 8
    ]
    assert upload.metadata["step"] == 8
    assert upload.metadata["epoch"] == 2
    assert upload.metadata["format_version"] == 2
    assert json.loads((inside / "tracking.json").read_text())["id"] == "run-abc123"


def test_the_journal_of_a_long_run_comes_in_its_parts(tmp_path: Path):
    run = FakeRun(tmp_path / "run", per_epoch=4, part_bytes=2000)
    run.describe()
    run.begin()
    run.go(26)
    box = outbox(run)
    upload = box.take(box.due(over=False)[-1])
    found = list(path.name for path in (upload.folder / "run").iterdir())
    assert len([name for name in found if name.startswith("metrics")]) > 2
    assert not [name for name in found if name.endswith(".csv")]
    assert [row["step"] for row in Journal(upload.folder / "run").rows() if row["kind"] == "step"] == list(range(1, 25))


def test_a_rotation_while_the_journal_is_copied_loses_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = FakeRun(tmp_path / "run", per_epoch=4)
    run.describe()
    run.begin()
    run.go(8)
    box = outbox(run)
    key = box.due(over=False)[-1]
    run.journal = Journal(run.folder, part_bytes=1)  # the next row begins a new file
    glob, rotated = Path.glob, list[str]()

    def glob_and_rotate(path: Path, pattern: str) -> list[Path]:
        found = list(glob(path, pattern))
        if path == run.folder and "metrics" in pattern and not rotated:
            rotated.append(pattern)
            run.go(1)
        return found

    monkeypatch.setattr(Path, "glob", glob_and_rotate)
    upload = box.take(key)
    assert (run.folder / "metrics-000001.jsonl").exists()
    assert [row["step"] for row in Journal(upload.folder / "run").rows() if row["kind"] == "step"] == list(range(1, 9))


def test_aliases_tell_the_epoch_and_the_best(run: FakeRun):
    run.go(20)
    found = {upload.metadata["step"]: upload.aliases for upload in send(outbox(run))}
    best = run.best
    assert found == {4 * best: (f"epoch-{best}", "best"), 20: ("epoch-5",)}


def test_a_state_in_the_middle_of_an_epoch_bears_the_name_of_none(run: FakeRun):
    run.go(6)
    run.save()
    assert [upload.aliases for upload in send(outbox(run)) if upload.metadata["step"] == 6] == [()]


def test_a_model_comes_with_its_facts(run: FakeRun):
    run.go(8)
    run.finish()
    (upload,) = send(outbox(run, "model"), over=True)
    assert upload.kind == "model"
    assert upload.aliases == ("best",)
    assert upload.metadata["test_accuracy"] == 0.75
    assert (upload.metadata["run"], upload.metadata["wandb"]) == ("run", "lab/run-abc123")
    assert upload.metadata["git_commit"] == "c" * 40


def test_links_cost_no_room_and_outlive_the_checkpoint(run: FakeRun):
    run.go(4)
    box = outbox(run)
    upload = box.take(box.due(over=False)[0])
    source, linked = run.folder / "checkpoints/step-00000004", upload.folder / "checkpoint"
    for path in source.iterdir():
        assert os.path.samefile(path, linked / path.name)
    shutil.rmtree(source)
    verify(linked)


def test_a_file_system_without_hard_links_costs_a_copy(run: FakeRun, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    run.go(4)
    box = outbox(run)
    upload = box.take(box.due(over=False)[0])
    verify(upload.folder / "checkpoint")
    assert not os.path.samefile(
        upload.folder / "checkpoint/state.safetensors", run.folder / "checkpoints/step-00000004/state.safetensors"
    )


def test_a_checkpoint_that_was_pruned_since_is_not_taken(run: FakeRun):
    run.go(4)
    box = outbox(run)
    key = box.due(over=False)[0]
    shutil.rmtree(run.folder / "checkpoints/step-00000004")
    with pytest.raises(FileNotFoundError):
        box.take(key)


NAMES = ("state.safetensors", "state.json", "model.safetensors", "model.json", "recipe.json", "manifest.json")


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_that_is_just_being_pruned_is_not_taken(run: FakeRun, name: str):
    run.go(4)
    box = outbox(run)
    key = box.due(over=False)[0]
    (run.folder / "checkpoints/step-00000004" / name).unlink()
    with pytest.raises(FileNotFoundError):
        box.take(key)


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_that_is_pruned_while_it_is_linked_is_not_taken(
    run: FakeRun, name: str, monkeypatch: pytest.MonkeyPatch
):
    run.go(4)
    box = outbox(run)
    key = box.due(over=False)[0]
    link = os.link

    def prune(source: Path, target: Path) -> None:
        if Path(source).name == name:
            shutil.rmtree(Path(source).parent)
        link(source, target)

    monkeypatch.setattr(os, "link", prune)
    with pytest.raises(FileNotFoundError):
        box.take(key)


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_checkpoint_is_not_taken(run: FakeRun, name: str):
    run.go(4)
    box = outbox(run)
    key = box.due(over=False)[0]
    path = run.folder / "checkpoints/step-00000004" / name
    text = bytearray(path.read_bytes())
    text[-1] ^= 1
    path.write_bytes(text)
    with pytest.raises(FileNotFoundError):
        box.take(key)


@pytest.mark.parametrize("name", ["state.json", "manifest.json"])
@pytest.mark.parametrize("text", [None, b"", b"{", b"[]", b'{"progress": {}}', b"\xff\xfe"])
def test_damage_never_keeps_others_from_being_due(run: FakeRun, name: str, text: bytes | None):
    run.go(20)
    path = run.folder / "checkpoints/step-00000020" / name
    path.unlink() if text is None else path.write_bytes(text)
    box = outbox(run)
    for key in box.due(over=False):
        if "step-00000020" in key:
            with pytest.raises(FileNotFoundError):
                box.take(key)
        else:
            verify(box.take(key).folder / "checkpoint")


def test_a_checkpoint_pruned_while_it_is_looked_for_is_not_due(run: FakeRun, monkeypatch: pytest.MonkeyPatch):
    run.go(20)
    seal = uploads.sha256_of

    def prune(path: Path) -> str:
        if "step-00000020" not in str(path):
            shutil.rmtree(path.parent, ignore_errors=True)
        return seal(path)

    monkeypatch.setattr(uploads, "sha256_of", prune)
    assert names(outbox(run).due(over=False)) == ["state/step-00000020"]


def test_after_a_rollback_another_checkpoint_of_the_same_step_is_due(run: FakeRun):
    run.go(8)
    box = outbox(run)
    first = send(box)[-1]
    run.back_to(4, salt=1)
    run._snapshot.scalars["seed of the test"] = 1  # other contents
    run.go(4)
    keys = [key for key in box.due(over=False) if "step-00000008" in key]
    assert len(keys) == 1
    assert keys != [first.key]


def test_a_checkpoint_that_was_replaced_since_it_was_due_is_not_taken_for_it(run: FakeRun):
    run.go(8)
    box = outbox(run)
    key = box.due(over=False)[-1]
    run._snapshot.scalars["seed of the test"] = 1
    run.save()
    with pytest.raises(FileNotFoundError):
        box.take(key)
    assert box.due(over=False)[-1] != key


def test_after_an_older_state_the_newest_comes_again_to_be_the_latest(run: FakeRun):
    run.go(20)
    box = outbox(run)
    best, newest = box.due(over=False)
    box.done(box.take(newest), "v7")
    assert box.due(over=False) == [best, newest]
    box.done(box.take(best), "v8")
    assert outbox(run).due(over=False) == [newest]
    box.done(box.take(newest), "v7")
    assert outbox(run).due(over=False) == []


def test_a_state_that_a_run_has_gone_back_to_is_due_again_to_be_the_latest(run: FakeRun):
    run.go(8)
    box = outbox(run)
    first = send(box)[-1].key
    run.go(12)
    send(box)
    run.back_to(8)
    run.save()
    assert box.due(over=False)[-1] == first
    send(box)
    assert outbox(run).due(over=False) == []


def test_the_same_steps_again_are_due_again_only_if_another_state_came_last(run: FakeRun):
    run.go(20)
    box = outbox(run)
    newest = send(box)[-1].key
    run.back_to(8)
    run.go(12)
    assert box.due(over=False) == []
    run.back_to(8)
    run.go(4)
    send(box)
    run.go(8)
    assert box.due(over=False) == [newest]


def test_a_model_does_not_make_a_state_due_again(run: FakeRun):
    run.go(8)
    run.finish()
    box = outbox(run)
    send(box, over=True)
    assert box.due(over=True) == []


DAMAGES: list[Callable[[Path], object]] = [
    Path.unlink,
    lambda path: path.write_text(""),
    lambda path: path.write_text("{"),
    lambda path: path.write_bytes(b"\xff\0"),
    lambda path: path.write_text("[]"),
    lambda path: path.write_text("null"),
    lambda path: path.write_text('{"state/step-00000008": 3}'),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_without_its_cursor_everything_is_due_again(run: FakeRun, damage: Callable[[Path], object]):
    run.go(8)
    send(outbox(run))
    damage(run.folder / CURSOR)
    box = outbox(run)
    assert names(box.due(over=False))[-1] == "state/step-00000008"
    send(box)
    assert outbox(run).due(over=False) == []


def test_the_folder_of_an_upload_goes_with_it_and_what_a_kill_has_left_is_swept(run: FakeRun):
    run.go(8)
    box = outbox(run)
    upload = box.take(box.due(over=False)[-1])
    assert upload.folder.is_relative_to(run.folder / OUTBOX)
    again = box.take(upload.key)  # after a kill
    verify(again.folder / "checkpoint")
    box.done(again, "v0")
    assert not again.folder.exists()
    box.take(upload.key)
    outbox(run).sweep()
    assert not (run.folder / OUTBOX).exists()


def test_who_sends_nothing_sweeps_nothing_of_another(run: FakeRun):
    run.go(8)
    box = outbox(run)
    upload = box.take(box.due(over=False)[-1])
    outbox(run, "none").sweep()
    verify(upload.folder / "checkpoint")
