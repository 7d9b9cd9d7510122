"""What `report.py sync` sends, what it compares, and how it says so; W&B itself is asked elsewhere."""

import errno
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from distcifar.errors import StorageError, TrackingError
from distcifar.tracking.identity import Identity, read_identity
from distcifar.tracking.shipping import sync
from distcifar.tracking.shipping.content import shipped_rows
from distcifar.tracking.shipping.sync import SyncResult, sync_registries, sync_runs, sync_table, verified
from distcifar.tracking.shipping.uploads import Outbox
from distcifar.tracking.wandb import registry_api
from distcifar.tracking.wandb.artifacts import Seen
from tests.support.fake_run import FakeRun
from tests.unit.tracking.registry.registry_runs import make_run, registry


@pytest.fixture
def run(tmp_path: Path) -> FakeRun:
    """A finished run, of which everything was sent."""
    found = FakeRun(tmp_path / "run", per_epoch=4)
    found.describe(Identity("run-abc123", "run", "lab"))
    found.begin()
    found.go(20)
    found.finish()
    return found


@pytest.fixture
def wandb_has(run: FakeRun, monkeypatch):
    """The aliases that W&B has, by kind and version, as if all of the run had been sent; and its state there."""
    there: dict[tuple[str, str], set[str]] = {}
    box = Outbox(run.folder, "state")
    for number, key in enumerate(box.due(over=True)):
        upload = box.take(key)
        box.done(upload, f"v{number}")
        for (kind, _), names in there.items():
            if kind == upload.kind:
                names -= {"latest", *upload.aliases}
        there[upload.kind, f"v{number}"] = {"latest", *upload.aliases}
    seen = Seen("finished", "https://wandb/run", [step for step, _ in shipped_rows(run.rows)])
    monkeypatch.setattr(sync, "look_up", lambda identity: seen)
    monkeypatch.setattr(sync, "aliases_of", lambda identity, kind, version: there.get((kind, version)))
    return there, lambda **change: monkeypatch.setattr(sync, "look_up", lambda identity: replace(seen, **change))


def missing(run: FakeRun, url: str = "https://wandb/run") -> list[str]:
    identity = read_identity(run.folder)
    assert identity is not None
    return verified(run.folder, identity, url).missing


def test_nothing_is_missing_of_what_was_sent(run: FakeRun, wandb_has):
    assert missing(run) == []


def test_each_alias_that_somebody_took_is_missed(run: FakeRun, wandb_has):
    there, _ = wandb_has
    for (kind, version), names in there.items():
        for alias in names & {"best", "latest"} - ({"best"} if kind == "model" else set()):
            names.remove(alias)
            assert missing(run) == [f"artifact run-abc123-{kind}:{version} (is not {alias})"]
            names.add(alias)
    assert {"best", "latest"} <= {name for names in there.values() for name in names}
    gone = there.pop(("model", max(version for kind, version in there if kind == "model")))
    assert len(missing(run)) == 1, gone


def test_a_model_that_was_not_sent_is_missed_if_it_was_to_be(run: FakeRun, wandb_has):
    path = run.folder / "uploads.json"
    sent = {key: version for key, version in json.loads(path.read_text()).items() if not key.startswith("model/")}
    path.write_text(json.dumps(sent))
    assert missing(run) == ["artifact run-abc123-model"]
    facts = json.loads((run.folder / "run.json").read_text())
    (run.folder / "run.json").write_text(json.dumps(facts | {"spec": {"upload": "none"}}))
    assert missing(run) == []


def test_the_state_there_must_be_that_of_the_run(run: FakeRun, wandb_has):
    _, change = wandb_has
    for state in ("failed", "running", "crashed"):
        change(state=state)
        assert missing(run) == [f"the end: it is {state} there and finished here"]
        assert missing(run, url="") == [], "another process is sending it"
    (run.folder / "summary.json").unlink()
    assert missing(run) == [], "it is killed now"
    change(state="finished")
    assert missing(run) == ["the end: it is finished there and killed here"]


def test_a_run_that_was_to_stay_here_is_sent_by_its_name_only(tmp_path, monkeypatch):
    monkeypatch.setattr(sync, "require_key", lambda: None)
    monkeypatch.setattr(sync, "_send", lambda folder, identity, announce: "url")
    monkeypatch.setattr(sync, "verified", lambda folder, identity, url: SyncResult(folder, "finished", url))
    folders, said = [], []
    for name, spec in (("a", {"wandb": "auto"}), ("b", {"wandb": "disabled"}), ("c", None)):
        folders.append(tmp_path / name)
        folders[-1].mkdir()
        (folders[-1] / "run.json").write_text(json.dumps({"spec": spec} if spec else {}))
    sent = [result.folder.name for result in sync_runs(folders, said.append, named=False)]
    assert sent == ["a", "c"]
    assert [line for line in said if "b is left out" in line]
    assert not (tmp_path / "b/tracking.json").exists()
    assert [result.folder.name for result in sync_runs(folders, said.append)] == ["a", "b", "c"]


def test_a_damaged_or_refused_registry_holds_up_no_other(tmp_path, monkeypatch):
    make_run(tmp_path, "first")
    for name in ("a", "b", "c", "d"):
        registry(tmp_path, name).promote("first", "staging")
    (tmp_path / ".registry/a/log.jsonl").write_text("nonsense\n")
    told = []

    def synced(found, **how):
        found.state()
        if found.name != "d":
            raise (TrackingError if found.name == "b" else StorageError)(f"{found.name} fails", "rule", "remedy")
        told.append(found.name)

    monkeypatch.setattr(sync.registry, "sync", synced)
    problems = sync_registries(tmp_path, project="p", announce=told.append)
    assert told == ["d"]
    assert [problem.partition(":")[0] for problem in problems] == ["Registry a", "Registry b", "Registry c"]
    assert "line 1" in problems[0]


def test_what_a_server_says_is_no_markup():
    console = Console(width=200, record=True, file=io.StringIO())
    said = "[link=http://evil]x[/link] [red]"
    console.print(sync_table([SyncResult(Path("[bold]"), said, "https://a/b?c=[red]", missing=[said])]))
    text = console.export_text()
    assert text.count(said) == 2
    assert "[bold]" in text
    assert "https://a/b?c=[red]" in text


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), StorageError),
        (PermissionError(errno.EACCES, "Permission denied", "/out"), StorageError),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "/file/below"), StorageError),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), TrackingError),
        (ValueError("no such artifact"), TrackingError),
    ],
)
def test_a_fault_of_this_machine_is_not_called_one_of_wandb(tmp_path, error, kind):
    with pytest.raises(kind), registry_api.told("later", tmp_path):
        raise error
