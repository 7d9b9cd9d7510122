"""Claiming a run directory: fresh, continued, begun from another run, or refused; never overwritten unasked."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import Timeout

from distcifar.cluster.resume import Origin, adopt, extends, opened_origin, why_not
from distcifar.cluster.stored.places import runs_here
from distcifar.config import Recipe, RunSpec, from_dict, to_dict
from distcifar.errors import RunError, StorageError, TrackingError
from distcifar.files import ASIDE, sweep_aside, sync_folder, write_json
from distcifar.tracking.identity import Identity, new_identity, read_identity, write_identity
from distcifar.tracking.journal import append_event
from distcifar.tracking.outcome import launch_lock, remove_locks
from distcifar.tracking.rows import last_row
from distcifar.tracking.shipping.fetch import SCHEME
from distcifar.tracking.wandb.artifacts import parse_reference


def run_folder(recipe: Recipe, spec: RunSpec) -> Path:
    """The run directory that `spec` names; else that of the W&B run that goes on, or a new name; absolute.

    Of a run at a URL it is this machine's copy.
    """
    name, runs = spec.name, runs_here(spec.runs)
    if not name and spec.resume.startswith(SCHEME) and not spec.branch:
        name = _name_here(runs, parse_reference(spec.resume)[1])
    return runs.absolute() / (name or f"{recipe.name}-{datetime.now():%Y%m%d-%H%M%S}")


def _name_here(runs: Path, wandb_id: str) -> str:
    """The name of the run directory that is this W&B run, if it began or was here; else its id."""
    for path in sorted(runs.glob("*/tracking.json")):
        with suppress(TrackingError):
            identity = read_identity(path.parent)
            if identity is not None and identity.id == wandb_id:
                return path.parent.name
    return wandb_id


@contextmanager
def only_launch(folder: Path) -> Iterator[None]:
    """Holds the run for this process: RunError if another one has it. The kernel frees it when its holder dies."""
    lock = launch_lock(folder)
    with _storage_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=1, poll_interval=0.05)  # whoever asks whether it is held holds it for a moment
        except Timeout:
            raise RunError(
                f"The run {folder.name!r} is being trained by another process",
                "One command trains a run at a time",
                "Wait for it, stop it, or choose another --name",
            ) from None
    try:
        yield
    finally:
        if not folder.exists():  # a mistake leaves nothing behind
            remove_locks(folder)
        lock.release()


def claim_run(
    recipe: Recipe, spec: RunSpec, folder: Path, facts: dict[str, Any], environment: Mapping[str, str] | None = None
) -> None:
    """Makes `folder` the run directory of `recipe`, with recipe.json and run.json (`facts`) written.

    A run in it is continued if it is unfinished, or extended, and holds the same recipe on the same data
    (facts["data_digest"]); spec.resume may name another run to start from, in W&B with `environment`'s key. Raises
    StorageError otherwise, naming what differs, or if it cannot be written.
    """
    with _storage_errors(folder):
        _put_back(folder)
        if (folder / "recipe.json").exists() and not spec.overwrite:
            _go_on(recipe, spec, folder, facts)
        elif folder.exists() and any(folder.iterdir()) and not (folder / "recipe.json").exists():
            raise StorageError(
                f"{folder} exists and is not a run directory",
                "A run needs a folder of its own",
                "Choose --name",
            )
        else:
            with opened_origin(spec.resume, folder, environment or {}) as origin:
                _begin(recipe, spec, folder, facts, origin)
        sweep_aside(folder)
        sweep_aside(folder / "checkpoints")


def discard_if_unused(folder: Path) -> None:
    """Removes the directory of a run that failed before its first step: there is nothing to continue."""
    kept = [path for path in (folder / "checkpoints").glob("step-*") if path.name != "step-00000000"]
    if folder.exists() and not kept and last_row(folder) is None:
        new, _ = _beside(folder)
        _remove(new)
        os.rename(folder, new)  # half removed under its own name it would be no run directory and in the way
        _remove(new)


@contextmanager
def _storage_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{error.filename or folder} cannot be written: {error.strerror or error}",
            "Runs are written below --runs",
            "Choose a folder that you may write, with --runs DIR",
        ) from error


def _begin(recipe: Recipe, spec: RunSpec, folder: Path, facts: dict[str, Any], origin: Origin | None) -> None:
    """A new directory, with a copy of `origin` if there is one.

    It is made beside `folder` and takes its name when it is complete: what it replaces may be what it starts from.
    """
    new, old = _beside(folder)
    _remove(new)
    _remove(old)
    new.mkdir(parents=True)
    try:
        if origin is not None:
            adopt(origin, recipe, facts["data_digest"], new, branch=spec.branch)
            facts = facts | {"parent": origin.lineage}
        write_json(new / "recipe.json", to_dict(recipe))
        write_json(new / "run.json", facts)
        write_identity(new, _identity(spec, folder, origin))
    except Exception:
        _remove(new)
        raise
    if folder.exists():
        os.rename(folder, old)
    os.rename(new, folder)
    sync_folder(folder.parent)
    _remove(old)


def _identity(spec: RunSpec, folder: Path, origin: Origin | None) -> Identity:
    """Of a run that goes on from W&B the W&B run that it was; else a new one."""
    if origin is not None and origin.name.startswith(SCHEME) and not spec.branch and origin.identity:
        *entity, project = parse_reference(origin.name)[0].split("/")
        return replace(origin.identity, project=project, entity=entity[0] if entity else origin.identity.entity)
    return new_identity(folder.name, spec.project, spec.entity, spec.group)


def _beside(folder: Path) -> tuple[Path, Path]:
    """Where a new `folder` is made, and where the old one waits meanwhile; `only_launch` keeps others away."""
    aside = folder.with_name(f"{ASIDE}{folder.name}")
    return aside.with_name(f"{aside.name}.new"), aside.with_name(f"{aside.name}.old")


def _put_back(folder: Path) -> None:
    """The old directory, where a process died between moving it away and giving its name to the new one."""
    _, old = _beside(folder)
    if old.exists() and not folder.exists():
        os.rename(old, folder)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _go_on(recipe: Recipe, spec: RunSpec, folder: Path, facts: dict[str, Any]) -> None:
    """Takes up the run in `folder`, if it can go on as `recipe`."""
    if spec.resume == "never":
        raise StorageError(
            f"The run {folder.name!r} exists",
            "--resume never begins anew",
            "Choose another --name, or --overwrite",
        )
    parent = json.loads((folder / "run.json").read_text()).get("parent")
    if spec.resume != "auto":
        _require_parent(folder, spec.resume, parent)
    _require_same(folder, recipe, facts["data_digest"])
    _reopen(folder, recipe)
    write_json(folder / "recipe.json", to_dict(recipe))
    write_json(folder / "run.json", facts | ({"parent": parent} if parent else {}))
    if read_identity(folder) is None:  # begun before there was tracking
        write_identity(folder, _identity(spec, folder, None))


def _require_parent(folder: Path, wanted: str, parent: dict[str, Any] | None) -> None:
    """Raises StorageError unless the run in `folder` began from `wanted`, a run or a checkpoint, or is that run."""
    begun = parent["checkpoint"] if parent else ""
    if wanted.startswith(SCHEME):
        identity = read_identity(folder)
        fits = identity is not None and identity.id == parse_reference(wanted)[1]
    else:
        fits = Path(wanted).absolute() in (folder, Path(begun), Path(begun).parent.parent)
    if not fits and wanted != begun:
        raise StorageError(
            f"The run {folder.name!r} exists and did not begin from {wanted}",
            "--resume PATH begins a new run, and goes on with one that it has begun",
            "Choose another --name, or --overwrite; without --resume the run goes on from where it is",
        )


def _reopen(folder: Path, recipe: Recipe) -> None:
    """Makes a finished run an unfinished one: `_require_same` has found that it is to have more epochs."""
    if (folder / "summary.json").exists():
        append_event(folder, "extended", f"to {recipe.total_epochs} epochs")
        (folder / "summary.json").unlink()


def _require_same(folder: Path, recipe: Recipe, data_digest: str) -> None:
    """Raises StorageError unless the run in `folder` can go on as this recipe on this data."""
    other = f"Choose another --name, or replace it with --overwrite. It lies in {folder}"
    before = from_dict(Recipe, json.loads((folder / "recipe.json").read_text()))
    extended = extends(before, recipe)
    if (folder / "summary.json").exists():
        summary = json.loads((folder / "summary.json").read_text())
        if not extended or summary["outcome"] != "finished":
            ended = "finished" if summary["outcome"] == "finished" else "finished by early stopping"
            raise StorageError(
                f"The run {folder.name!r} is {ended} (test accuracy {summary['test_accuracy']:.2%})"
                + (
                    f" and has another recipe ({why_not(before, recipe)})" if before.digest() != recipe.digest() else ""
                ),
                "A run is never overwritten unasked; more --epochs extend one whose schedule does not depend on them",
                f"{other}. Or go on from it: --resume {folder} --branch --name ANOTHER",
            )
    elif before.digest() != recipe.digest() and not extended:
        raise StorageError(
            f"The unfinished run {folder.name!r} has another recipe ({why_not(before, recipe)})",
            "A run is continued with the recipe it was started with",
            f"{other}. Or go on from it: --resume {folder} --branch --name ANOTHER",
        )
    digest = json.loads((folder / "run.json").read_text())["data_digest"]
    if digest != data_digest:
        raise StorageError(
            f"The unfinished run {folder.name!r} was trained on other data ({digest[:9]}, now {data_digest[:9]})",
            "A run is continued on the data it was started with",
            other,
        )
