"""The sweep's directory: the truth from which an interrupted search goes on and all results are drawn.

    runs/NAME/
      sweep.json       recipe, space, specification and data of the search: what it is, for its whole life
      points.jsonl     what a searcher that learns has proposed: trial, point
      results.jsonl    each epoch's result in the order in which it was decided on, with the decision
      trials/007/      a run directory for each trial (tracking/journal.py); 007-e004-1f2a: what pbt made of it; c007-2:
                       its configuration with another seed, to confirm it (confirmed.jsonl)
      ranking.json     the end: ranking, importance, savings, winner; best.json: the winner as a recipe file

A search is a deterministic program of its results. After an interruption it is run again from its start, and each epoch
that is in results.jsonl is answered from there instead of trained: so schedulers and searchers come to the
state that they had, without a file of their own.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from distcifar.config import Recipe, RunSpec, differences, from_dict, to_dict
from distcifar.config.space import Point, Space, space_from_dict, value_at
from distcifar.config.sweep import SweepSpec
from distcifar.errors import StorageError
from distcifar.files import write_json

SWEEP, RESULTS, CONFIRMED, POINTS = "sweep.json", "results.jsonl", "confirmed.jsonl", "points.jsonl"
MAY_CHANGE = ("concurrent", "retries", "confirm", "export", "cpus_per_trial", "gpus_per_trial")
"""Fields of SweepSpec that may differ when a search goes on."""


@dataclass(frozen=True)
class Result:
    """One epoch of one trial, as the scheduler was told it."""

    run: str  # name of the run directory below trials/
    trial: int
    epoch: int
    accuracy: float  # on validation images, 0-1
    score: float  # the best accuracy up to here
    loss: float
    seconds: float  # of training, of this run up to here
    decision: str = ""  # continue, stop, pause or (pbt) noop; failed where there is a problem
    step: int = 0  # optimizer steps of this run up to here
    problem: str = ""  # why there is no such epoch: diverged, or a point that is no recipe; accuracy is 0 then


def result_of(told: Mapping[str, Any]) -> Result:
    """The result among what Tune was told, which has more."""
    return Result(**{field.name: told[field.name] for field in fields(Result)})


def trial_of(run: str) -> int:
    """The trial that a run directory belongs to: 7 of 007 and 007-e004-1f2a; of c007-2 the configuration."""
    return int(run.removeprefix("c").partition("-")[0])


@dataclass(frozen=True)
class Sweep:
    """What a search is."""

    folder: Path
    recipe: Recipe  # with the length of a trial
    space: Space
    spec: SweepSpec
    run: RunSpec  # of each trial, but for its name and place
    data: Path  # of the prepared betons
    data_digest: str

    @property
    def trials(self) -> Path:
        """The folder of the trials' run directories."""
        return self.folder / "trials"

    def group_of(self, trial: int) -> int:
        """The number of the configuration that the trial is one seed of."""
        return trial // self.spec.seeds


def write_sweep(sweep: Sweep) -> None:
    """Writes sweep.json; where there is one it has to be of the same search. Raises StorageError otherwise."""
    described = {
        "recipe": to_dict(sweep.recipe),
        "space": to_dict(sweep.space),
        "spec": to_dict(sweep.spec),
        "run": to_dict(sweep.run),
        "data": str(sweep.data),
        "data_digest": sweep.data_digest,
    }
    path = sweep.folder / SWEEP
    if path.exists():
        _require_same(sweep.folder, json.loads(path.read_text()), described)
    elif sweep.folder.exists() and any(sweep.folder.iterdir()):
        raise StorageError(
            f"{sweep.folder} exists and is no sweep", "A search needs a folder of its own", "Choose another --name"
        )
    sweep.trials.mkdir(parents=True, exist_ok=True)
    write_json(path, described)


def read_sweep(folder: Path) -> Sweep:
    """The search in `folder`. Raises StorageError where there is none."""
    try:
        found = json.loads((folder / SWEEP).read_text())
    except (OSError, ValueError) as error:
        raise StorageError(
            f"{folder} holds no search ({error})", "A search has a sweep.json", "Name its folder"
        ) from None
    return Sweep(
        folder,
        from_dict(Recipe, found["recipe"]),
        space_from_dict(found["space"]),
        from_dict(SweepSpec, found["spec"]),
        from_dict(RunSpec, found["run"]),
        Path(found["data"]),
        found["data_digest"],
    )


def _require_same(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises StorageError unless what `now` searches is what the search in `folder` does."""
    parts = {key: (before[key], now[key]) for key in ("recipe", "space", "data_digest")}
    parts["spec"] = tuple(  # type: ignore[assignment]
        {key: value for key, value in described["spec"].items() if key not in MAY_CHANGE} for described in (before, now)
    )
    found = [line for key, (old, new) in parts.items() for line in differences(old, new, key)]
    if found:
        raise StorageError(
            f"The search {folder.name!r} is another one ({'; '.join(found[:3])})",
            "The same command goes on with a search",
            f"Choose another --name, or replace it with --overwrite. It lies in {folder}",
        )


class Results:
    """results.jsonl. The driver alone writes it; each line is on the disk before its decision is acted upon."""

    def __init__(self, folder: Path, name: str = RESULTS) -> None:
        self._path = folder / name
        self.all = read_results(folder, name)
        self._known = {(result.run, result.epoch): result for result in self.all}

    def known(self, run: str, epoch: int) -> Result | None:
        """What is already written of that epoch."""
        return self._known.get((run, epoch))

    def add(self, result: Result) -> None:
        """Appends a line, flushed."""
        append_line(self._path, asdict(result))
        self.all.append(result)
        self._known[result.run, result.epoch] = result


def read_results(folder: Path, name: str = RESULTS) -> list[Result]:
    """All whole lines of results.jsonl, or of the confirmation's."""
    return [Result(**line) for line in lines_in(folder / name)]


def read_points(folder: Path) -> dict[int, Point]:
    """What a searcher that learns has proposed so far, by trial."""
    return {
        line["trial"]: {path: tuple(v) if isinstance(v, list) else v for path, v in line["point"].items()}
        for line in lines_in(folder / POINTS)
    }


def add_point(folder: Path, trial: int, point: Point) -> None:
    """Notes what was proposed for `trial`."""
    append_line(folder / POINTS, {"trial": trial, "point": point})


def points_of_runs(sweep: Sweep, results: Iterable[Result]) -> dict[str, Point]:
    """By run, the searched fields that are active there, as its recipe.json has them; of runs that have begun."""
    found: dict[str, Point] = {}
    for run in {result.run for result in results}:
        path = sweep.trials / run / "recipe.json"
        if path.exists():
            recipe, point = from_dict(Recipe, json.loads(path.read_text())), Point()
            for dimension in sweep.space.dimensions:
                if dimension.active(point, recipe):
                    point[dimension.path] = value_at(recipe, dimension.path)
            found[run] = point
    return found


def append_line(path: Path, value: Any) -> None:
    """Adds `value` as a line of JSON, flushed to the disk; what a killed process left of a line is cut off first.

    Raises StorageError where the disk refuses it.
    """
    try:
        with open(path, "ab+") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.seek(0)
                    file.truncate(file.read().rfind(b"\n") + 1)
            file.write((json.dumps(value) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror or error}",
            "What a search decides is on the disk before it is acted upon",
            "Make room there and type the same command to go on",
        ) from error


def lines_in(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a file of JSON lines; none of a file that is not there."""
    if path.exists():
        for line in path.read_bytes().split(b"\n")[:-1]:
            yield json.loads(line)
