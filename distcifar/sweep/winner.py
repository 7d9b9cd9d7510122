"""The end of a search: ranking.json, and its winner as a recipe file that jobs/train.py takes."""

import json
import os
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from distcifar.config import Recipe, from_dict, to_dict
from distcifar.config.space import Point, apply, value_text
from distcifar.errors import StorageError
from distcifar.files import write_json
from distcifar.sweep.folder import Sweep, points_of_runs, read_results
from distcifar.sweep.importance import Importance, importance
from distcifar.sweep.ranking import Confirmed, Ranked, Savings, State, Trial, ranking, savings, trials_of

RANKING, BEST = "ranking.json", "best.json"
OVER: dict[State, State] = {"paused": "stopped", "running": "finished"}  # running: the recipe's own early stopping


@dataclass(frozen=True)
class Ending:
    """What is known of a search when it is over."""

    trials: tuple[Trial, ...]
    ranked: tuple[Ranked, ...]
    savings: Savings
    importance: Importance
    confirmed: tuple[Confirmed, ...]

    @property
    def winner(self) -> Ranked:
        """The confirmed configuration; without a confirmation the first of the ranking."""
        groups = [row.group for row in self.confirmed if row.winner]
        return next(row for row in self.ranked if not groups or row.group == groups[0])


def ranked_trials(
    sweep: Sweep, planned: Sequence[Point], failed: Collection[int] = (), *, over: bool = False
) -> tuple[list[Trial], list[Ranked]]:
    """All trials and their ranking, as the folder has them; planned: points of trials that may have no run.

    over: the search is; a trial that waits for others has been stopped, one that nobody stopped has ended by itself.
    """
    results = read_results(sweep.folder)
    runs = points_of_runs(sweep, results)
    points = dict(enumerate(planned)) | {result.trial: runs[result.run] for result in results if result.run in runs}
    trials = trials_of(sweep, results, points, failed)
    if over:
        trials = [replace(trial, state=OVER.get(trial.state, trial.state)) for trial in trials]
    return trials, ranking(sweep, trials)


def ending_of(
    sweep: Sweep, trials: Sequence[Trial], ranked: Sequence[Ranked], confirmed: Sequence[Confirmed]
) -> Ending:
    """All of it."""
    return Ending(tuple(trials), tuple(ranked), savings(sweep, trials), importance(sweep, trials), tuple(confirmed))


def known_confirmed(sweep: Sweep) -> list[Confirmed]:
    """What ranking.json says of the confirmation; nothing before the search has ended."""
    path = sweep.folder / RANKING
    rows = json.loads(path.read_text())["confirmed"] if path.exists() else []
    return [from_dict(Confirmed, row) for row in rows]


def write_ending(sweep: Sweep, ending: Ending, export: str = "") -> list[Path]:
    """ranking.json and best.json in the sweep's folder, and a copy of the latter as `export`.json; what was written.

    Raises StorageError where no trial has come to an end.
    """
    if not ending.ranked or "failed" in ending.ranked[0].states:
        raise StorageError(
            f"No trial of {sweep.folder.name!r} has come to a result",
            "A winner is the best of those that have",
            f"Look into {sweep.folder}/results.jsonl, and change the space",
        )
    require_exportable(export)
    paths = [sweep.folder / BEST] + ([Path(export).with_suffix(".json")] if export else [])
    recipe = best_recipe(sweep, ending, Path(export).stem if export else f"{sweep.recipe.name}-best")
    try:
        write_json(sweep.folder / RANKING, asdict(ending))
        for path in paths:
            write_json(path, to_dict(recipe))
    except OSError as error:
        raise StorageError(
            f"{error.filename or sweep.folder} cannot be written: {error.strerror or error}",
            "The end of a search is ranking.json and its winner's recipe file",
            f"Make room, then: python jobs/best.py {sweep.folder}",
        ) from error
    return [sweep.folder / RANKING, *paths]


def require_exportable(export: str) -> None:
    """Raises StorageError where EXPORT.json cannot be written: better before a search than after it."""
    folder = Path(export).absolute().parent
    if export and not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise StorageError(
            f"--export is {export!r}, and {folder} {'cannot be written' if folder.exists() else 'does not exist'}",
            "The winner's recipe file goes into a folder that is there",
            "Make that folder, or give another NAME",
        )


def best_recipe(sweep: Sweep, ending: Ending, name: str) -> Recipe:
    """The winner as a recipe of its own: where it comes from is in its description."""
    row = ending.winner
    confirmed = next((found for found in ending.confirmed if found.winner), None)
    mean, error = (confirmed.mean, confirmed.error) if confirmed else (row.mean, row.error)
    seeds = len(confirmed.accuracies) if confirmed else len(row.scores)
    point = ", ".join(f"{path} {value_text(value)}" for path, value in row.point.items())
    found = f"{mean:.2%}" + (f" +- {error:.2%}" if error is not None else "")
    description = (
        f"Ours: the best of {ending.savings.trials} trials of {sweep.recipe.name} in the search {sweep.folder.name}:\n"
        f"{found} on validation over {seeds} seed(s)"
        + (", which the search had not seen.\n" if confirmed else "; not confirmed with other seeds.\n")
        + f"What was searched: {point}."
    )
    return replace(apply(sweep.recipe, row.point), name=name, description=description, reported_accuracy=None)
