"""Claiming a run directory: a process that dies on the way leaves a place where the same command works."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from distcifar.cluster.run_folder import claim_run, discard_if_unused, only_launch
from distcifar.config import OptimConfig, Recipe
from distcifar.errors import RunError, StorageError
from distcifar.files import sha256_of
from tests.support import small_recipe
from tests.unit.cluster.runs import DATA, Killed, every_checkpoint, saved, spec_of, stopped_at, typed

PLAIN = small_recipe(epochs=1)
FACTS = {"data_digest": DATA}


# A process that dies at its n-th change to the disk


@dataclass
class Fuse:
    """Counts changes to the file system, and lets none happen from the `left`-th on while it `burns`."""

    burns: bool = False
    left: int = 0

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        changes = event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir") or (
            event == "open" and isinstance(args[1], str) and args[1].strip("bt") != "r"
        )
        if self.burns and changes:
            self.left -= 1
            if self.left < 0:  # also of what would be cleaned up: the process is dead
                raise Killed


FUSE = Fuse()
sys.addaudithook(FUSE)  # hears of every change; there is no way to remove it, so it sleeps between the tests


@contextmanager
def killed_at_change(number: int) -> Iterator[None]:
    FUSE.burns, FUSE.left = True, number
    try:
        yield
    finally:
        FUSE.burns = False


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, and one that was stopped."""
    runs = tmp_path_factory.mktemp("origin")
    with every_checkpoint():
        typed(PLAIN, runs, "finished")
        typed(replace(PLAIN, epochs=3), runs, "stopped", listen=stopped_at(runs / "stopped", 3))
    return runs


CHANGED = replace(PLAIN, epochs=3, optim=OptimConfig(lr=0.01))
COMMANDS: dict[str, tuple[str, Recipe, Callable[[Path], dict[str, Any]]]] = {
    "begin": ("new", PLAIN, lambda runs: {}),
    "continue": ("stopped", replace(PLAIN, epochs=3), lambda runs: {}),
    "extend": ("finished", replace(PLAIN, epochs=2), lambda runs: {}),
    "overwrite": ("finished", PLAIN, lambda runs: {"overwrite": True}),
    "start from another": ("new", replace(PLAIN, epochs=3), lambda runs: {"resume": str(runs / "stopped")}),
    "branch": ("new", CHANGED, lambda runs: {"resume": str(runs / "finished"), "branch": True}),
    "branch over it": (
        "finished",
        CHANGED,
        lambda runs: {"resume": str(runs / "finished"), "branch": True, "overwrite": True},
    ),
}


def content(runs: Path, name: str) -> dict[str, Any]:
    """What is in the run directory and beside it: names, and what the files say but for moments and places."""
    folder = runs / name
    files: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        key = str(path.relative_to(folder))
        if path.name == "events.jsonl":
            files[key] = "any"  # an extension may be told twice
        elif path.name == "run.json":
            facts = json.loads(path.read_text())
            parent = facts.pop("parent", {"step": None})  # its digests differ where a run has replaced itself twice
            files[key] = facts | {"from step": parent["step"]}
        elif path.name == "tracking.json":
            files[key] = json.loads(path.read_text()) | {"id": "any"}  # another one for each beginning
        elif path.is_file():
            files[key] = sha256_of(path)
    return files | {"beside": sorted(p.name for p in runs.iterdir() if not p.name.endswith("lock"))}


@pytest.mark.parametrize("command", COMMANDS)
def test_killed_between_any_two_changes_the_same_command_does_what_it_would_have_done(
    command: str, origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # for a power cut, of which this is not about
    name, recipe, words = COMMANDS[command]

    def claim(runs: Path) -> None:
        claim_run(recipe, spec_of(runs, name, **words(runs)), runs / name, FACTS)

    runs = tmp_path / "runs"
    shutil.copytree(origin, runs)
    claim(runs)
    whole = content(runs, name)
    for number in range(500):
        shutil.rmtree(runs)
        shutil.copytree(origin, runs)
        try:
            with killed_at_change(number):
                claim(runs)
            break
        except Killed:
            claim(runs)
        assert content(runs, name) == whole, f"killed at change {number}"
    assert 4 <= number < 500


def test_killed_while_a_run_that_failed_is_removed_its_name_is_free_for_the_same_command(tmp_path: Path):
    folder, spec = tmp_path / "run", spec_of(tmp_path, "run")
    for number in range(100):
        claim_run(PLAIN, spec, folder, FACTS)
        try:
            with killed_at_change(number):
                discard_if_unused(folder)
            break
        except Killed:
            claim_run(PLAIN, spec, folder, FACTS)
    assert number >= 3
    assert list(tmp_path.iterdir()) == []


def test_a_run_with_rows_or_a_checkpoint_is_never_discarded(origin: Path, tmp_path: Path):
    shutil.copytree(origin, tmp_path / "runs")
    folder = tmp_path / "runs/stopped"
    discard_if_unused(folder)
    (folder / "metrics.jsonl").unlink()
    discard_if_unused(folder)
    assert saved(folder).scalars["progress"]["step"] == 3


def test_what_killed_processes_left_half_written_is_swept(origin: Path, tmp_path: Path):
    shutil.copytree(origin, tmp_path / "runs")
    folder = tmp_path / "runs/stopped"
    (folder / ".aside-12345678-run.json").write_text("{")
    (folder / "checkpoints/.aside-12345678-step-00000004").mkdir()
    claim_run(replace(PLAIN, epochs=3), spec_of(folder.parent, "stopped"), folder, FACTS)
    assert not list(folder.rglob(".aside-*"))


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_something_else_is_neither_used_nor_replaced(overwrite: bool, tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/thesis.tex").write_text("...")
    with pytest.raises(StorageError, match="not a run directory"):
        claim_run(PLAIN, spec_of(tmp_path, "run", overwrite=overwrite), tmp_path / "run", FACTS)
    assert (tmp_path / "run/thesis.tex").exists()


def test_an_empty_folder_may_be_used(tmp_path: Path):
    (tmp_path / "run").mkdir()
    claim_run(PLAIN, spec_of(tmp_path, "run"), tmp_path / "run", FACTS)
    assert (tmp_path / "run/recipe.json").exists()


def test_one_command_trains_a_run_at_a_time(tmp_path: Path):
    with only_launch(tmp_path / "run"), pytest.raises(RunError, match="another process"), only_launch(tmp_path / "run"):
        pass
    with only_launch(tmp_path / "run"):
        pass


def test_a_run_that_ends_before_its_first_step_by_mistake_leaves_no_directory(tmp_path: Path):
    with pytest.raises(Exception, match="at least one whole batch"):
        typed(small_recipe(batch_size=64, drop_last=True), tmp_path)
    assert not (tmp_path / "run").exists()


def test_the_rows_of_a_run_are_of_its_steps_whatever_it_started_from(origin: Path, tmp_path: Path):
    """A checkpoint in mid-run brings the rows up to its step, not those that its run has made since."""
    shutil.copytree(origin, tmp_path / "runs")
    words = {"resume": str(tmp_path / "runs/stopped/checkpoints/step-00000003"), "branch": True}
    rows: list[dict[str, Any]] = []
    typed(CHANGED, tmp_path / "runs", "new", **words, listen=rows.append)
    first = next(row for row in rows if row["kind"] == "step")
    assert first["step"] == 4
