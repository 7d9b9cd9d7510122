"""What a report needs of a run directory, read once: of a finished run, of one that is going on, of one that was lost.

Whatever a run does not have yet is empty here; nothing in this file draws or formats.
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from distcifar.config.values import did_you_mean
from distcifar.errors import DataError, TrackingError
from distcifar.insight.downsample import Downsampler
from distcifar.tracking.identity import Identity, read_identity
from distcifar.tracking.journal import read_events
from distcifar.tracking.outcome import Outcome, outcome
from distcifar.tracking.rows import epoch_rows, iter_rows

STEP_COLUMNS = ("train/loss", "train/lr", "train/grad_norm")
SPEED = "perf/images_per_s"
MOST_POINTS = 600  # of a curve: about as many as a plot has pixels

Points = tuple[Sequence[float], Sequence[float]]  # epochs and values, all finite


@dataclass(frozen=True)
class RunRecord:
    """One run, as far as it has come."""

    folder: Path
    recipe: Mapping[str, Any]
    facts: Mapping[str, Any]  # run.json
    summary: Mapping[str, Any]  # empty until there is a result
    outcome: Outcome
    events: Sequence[Mapping[str, Any]]
    epochs: Sequence[Mapping[str, Any]]
    steps: Mapping[str, Points]  # by column, thinned out
    speed: float | None  # images per second of the last steps
    usual: Mapping[str, float]  # by column, what only outliers of the steps exceed: curves are cut off above it
    identity: Identity | None

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def last(self) -> Mapping[str, Any]:
        """The newest epoch's row."""
        return self.epochs[-1] if self.epochs else {}

    @property
    def state(self) -> str:
        """What is to be read first: finished, early stop, running, stopped, ..."""
        return str(self.summary.get("outcome", self.outcome.kind))

    @property
    def best_epoch(self) -> int:
        """The best epoch so far, from 1; 0 where there is none."""
        return int(self.summary.get("best_epoch") or self.last.get("best_epoch") or 0)

    @property
    def total_epochs(self) -> int:
        """Epochs over all stages, as planned."""
        return int(self.recipe["epochs"]) + sum(int(stage["epochs"]) for stage in self.recipe.get("then") or ())

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the labels; empty until the test split was measured."""
        return tuple(self.summary.get("per_class_accuracy") or {})

    def epoch_points(self, column: str) -> Points:
        """Epochs and values of a column of the epochs' rows."""
        return finite((row["epoch"], row.get(column)) for row in self.epochs)


def read_run(folder: Path) -> RunRecord:
    """The run in `folder`. Raises DataError where there is none, or where its files cannot be understood."""
    try:
        curves, speed = _step_curves(folder)
        return RunRecord(
            folder=folder,
            recipe=_object(folder / "recipe.json", "name", "epochs"),
            facts=_object(folder / "run.json"),
            summary=_object(folder / "summary.json"),
            outcome=outcome(folder),
            events=read_events(folder),
            epochs=list(epoch_rows(folder)),
            steps={name: curve.curve() for name, curve in curves.items()},
            speed=speed,
            usual={name: _usual_high(curve.sample()) for name, curve in curves.items()},
            identity=read_identity(folder),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder} cannot be read as a run: {error}",
            "A run directory has recipe.json, run.json and what docs/runs.md lists",
            "Name a directory that jobs/train.py has written",
        ) from error


def find_runs(
    names: Sequence[str], runs: Path, group: str = "", announce: Callable[[str], object] = print
) -> list[Path]:
    """The directories of runs, given as names below `runs` or as paths, and of all runs of a W&B `group`.

    A run that does not say whether it belongs to the group is announced. Raises DataError for a name that is no run,
    and for a group without any.
    """
    found = [_find_run(name, runs) for name in names]
    if group:
        members = _groups_of(all_runs(runs), announce)
        groups = {name for name in members.values() if name}
        if group not in groups:
            raise DataError(
                f"No run in {runs} belongs to the group {group!r}",
                "A group is the set of runs that one search has started",
                did_you_mean(group, groups) if groups else "Name the runs instead",
            )
        found += [folder for folder, name in members.items() if name == group]
    return list(dict.fromkeys(found))


def all_runs(runs: Path) -> list[Path]:
    """All run directories below `runs`, and those of searches there, by name."""
    found = (*runs.absolute().glob("*/recipe.json"), *runs.absolute().glob("*/trials/*/recipe.json"))
    return sorted(path.parent for path in found if path.parent.name[0] != ".")


def _groups_of(folders: Sequence[Path], announce: Callable[[str], object]) -> dict[Path, str]:
    groups = {}
    for folder in folders:
        try:
            identity = read_identity(folder)
        except TrackingError as error:
            announce(f"{folder.name} is left out: {error}")
        else:
            groups[folder] = identity.group if identity is not None else ""
    return groups


def _find_run(name: str, runs: Path) -> Path:
    for folder in (runs / name, Path(name)):
        if os.path.isfile(folder / "recipe.json"):  # pathlib's raises for a name that is too long to be a file's
            return folder.absolute()
    known = [folder.name for folder in all_runs(runs)]
    raise DataError(
        f"There is no run {name!r} in {runs}",
        "A run is named by its folder below --runs, or by a path",
        did_you_mean(name, known) if known else f"{runs} has no runs: give --runs DIR, or train one first",
    )


def finite(points: Iterable[tuple[Any, Any]]) -> Points:
    """The points with numbers that can be drawn."""
    kept = [(x, y) for x, y in points if x is not None and y is not None and math.isfinite(x) and math.isfinite(y)]
    return [x for x, _ in kept], [y for _, y in kept]


def _step_curves(folder: Path) -> tuple[dict[str, Downsampler], float | None]:
    """The curves of the steps, and the last speed. The rows are read one by one: there may be millions."""
    speed, curves = None, {name: Downsampler(MOST_POINTS) for name in STEP_COLUMNS}
    for row in iter_rows(folder):
        if row["kind"] == "step":
            speed = row.get(SPEED, speed)
            for name, curve in curves.items():
                value = row.get(name)
                if value is not None and math.isfinite(value):
                    curve.add(row["epoch"], value)
    return curves, speed


def _usual_high(values: Sequence[float]) -> float:
    return sorted(values)[int(0.98 * (len(values) - 1))] if values else 0.0


def _object(path: Path, *required: str) -> dict[str, Any]:
    """The JSON object in `path`; an empty one where there is no file and nothing is required of it."""
    value: Any = json.loads(path.read_text()) if path.exists() or required else {}
    missing = [key for key in required if key not in value]
    if missing or not isinstance(value, dict):
        raise ValueError(f"{path.name} has no {', '.join(missing) or 'fields'}")
    return value
