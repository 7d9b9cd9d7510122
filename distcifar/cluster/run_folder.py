"""Claiming a run directory: fresh, continued, or refused; never overwritten unasked."""

import json
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

from distcifar.config import Recipe, RunSpec, differences, to_dict
from distcifar.errors import StorageError
from distcifar.files import sweep_aside, write_json
from distcifar.tracking.journal import read_rows


def claim_run(recipe: Recipe, spec: RunSpec, facts: dict[str, Any]) -> Path:
    """The run directory for `recipe`, with recipe.json and run.json (`facts`) written; absolute.

    A directory of that name is continued if it is unfinished and holds the same recipe on the same data
    (facts["data_digest"]). Raises StorageError otherwise, naming what differs, or if it cannot be written.
    """
    folder = Path(spec.runs).absolute() / (spec.name or f"{recipe.name}-{datetime.now():%Y%m%d-%H%M%S}")
    try:
        if (folder / "recipe.json").exists():
            if spec.overwrite:
                shutil.rmtree(folder)
            else:
                _require_same(folder, recipe, facts["data_digest"])
        elif folder.exists() and any(folder.iterdir()):
            raise StorageError(
                f"{folder} exists and is not a run directory",
                "A run needs a folder of its own",
                "Choose --name",
            )
        folder.mkdir(parents=True, exist_ok=True)
        sweep_aside(folder)
        sweep_aside(folder / "checkpoints")
        write_json(folder / "recipe.json", to_dict(recipe))
        write_json(folder / "run.json", facts)
    except OSError as error:
        raise StorageError(
            f"{error.filename or folder} cannot be written: {error.strerror}",
            "Runs are written below --runs",
            "Choose a folder that you may write, with --runs DIR",
        ) from error
    return folder


def discard_if_unused(folder: Path) -> None:
    """Removes the directory of a run that failed before its first step: there is nothing to continue."""
    if not read_rows(folder / "metrics.jsonl") and not (folder / "checkpoints").exists():
        shutil.rmtree(folder)


def _require_same(folder: Path, recipe: Recipe, data_digest: str) -> None:
    """Raises StorageError unless the run in `folder` is unfinished and is this recipe on this data."""
    other = f"Choose another --name, or replace it with --overwrite. It lies in {folder}"
    if (folder / "summary.json").exists():
        accuracy = json.loads((folder / "summary.json").read_text())["test_accuracy"]
        raise StorageError(
            f"The run {folder.name!r} is finished (test accuracy {accuracy:.2%})",
            "A run is never overwritten unasked",
            other,
        )
    before = json.loads((folder / "recipe.json").read_text())
    texts = ("name", "description", "reported_accuracy")
    changed = differences({k: v for k, v in before.items() if k not in texts}, recipe.numbers())
    if changed:
        raise StorageError(
            f"The unfinished run {folder.name!r} has another recipe ({'; '.join(changed)})",
            "A run is continued with the recipe it was started with",
            other,
        )
    digest = json.loads((folder / "run.json").read_text())["data_digest"]
    if digest != data_digest:
        raise StorageError(
            f"The unfinished run {folder.name!r} was trained on other data ({digest[:9]}, now {data_digest[:9]})",
            "A run is continued on the data it was started with",
            other,
        )
