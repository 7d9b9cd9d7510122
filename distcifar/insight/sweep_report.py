"""The page of a search: what was tried, who won and by how much, what decided. One HTML file, as report.py's.

What is said is computed here as texts and numbers; how it looks is sweep.html.j2, where every text is escaped.
"""

import base64
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from distcifar import __version__
from distcifar.config.space import Point, apply, value_at, value_text
from distcifar.config.sweep import SweepSpec
from distcifar.insight.pages import page_environment, write_page
from distcifar.insight.report_facts import Tile, percent, tone
from distcifar.insight.sweep_plots import CURVES, PARALLEL, PARAMETERS, counts
from distcifar.sweep.folder import Sweep
from distcifar.sweep.ranking import Confirmed, Ranked
from distcifar.sweep.winner import Ending
from distcifar.tracking.console import clock

MOST_RANKED = 20
MOST_FIELDS = 6  # of the table of the ranking: those that weigh most
MOST_FAILED = 20
LEAST_SCALE = 0.6  # of a picture: below it could not be read
SAID = {  # under the pictures
    CURVES: "Learning curves, with the epochs at which trials were stopped",
    PARALLEL: "All trials, a line each, coloured by their accuracy",
    PARAMETERS: "Each field against the accuracy",
}


@dataclass(frozen=True)
class FieldRow:
    """One searched field."""

    path: str
    domain: str
    condition: str
    before: str  # its value in the recipe
    best: str  # in the winner; empty where it is not searched there
    changed: bool


@dataclass(frozen=True)
class RankRow:
    """A configuration in the ranking."""

    place: int
    trials: str
    accuracy: str
    share: float  # of the best mean, 0-1, for a bar
    reached: int
    states: tuple[str, ...]
    values: tuple[str, ...]
    winner: bool


@dataclass(frozen=True)
class ConfirmedRow:
    """A configuration that was trained again."""

    trials: str
    digest: str
    accuracies: tuple[str, ...]
    mean: str
    searched: str  # what it had in the search
    test: tuple[str, ...]
    winner: bool


@dataclass(frozen=True)
class Picture:
    """A picture on the page; where there is no room for its least width in pixels it is scrolled."""

    said: str
    least_width: int
    png: str  # base64


def write_sweep_report(sweep: Sweep, ending: Ending, page: Path) -> None:
    """Writes the page of a search, with the pictures that draw_sweep has put into its folder.

    Raises ConfigError where `page` is a folder, and StorageError where it cannot be written.
    """
    write_page(render_sweep(sweep, ending), page)


def render_sweep(sweep: Sweep, ending: Ending) -> str:
    """The page. Of a search that goes on it tells what there is; there has to be a trial with a result."""
    environment = page_environment()
    environment.filters |= {"percent": percent, "tone": tone}
    shown = _shown_fields(sweep, ending)
    return environment.get_template("sweep.html.j2").render(
        title=sweep.folder.name,
        facts=_facts(sweep),
        tiles=_tiles(sweep, ending),
        fields=[_field_row(sweep, number, ending.winner.point) for number in range(len(sweep.space.dimensions))],
        digest=apply(sweep.recipe, ending.winner.point).digest(),
        columns=_heads(shown),
        ranked=[_rank_row(ending, row, shown) for row in ending.ranked[:MOST_RANKED]],
        configurations=len(ending.ranked),
        importance=ending.importance,
        reached=_reached(ending),
        stops=sweep.spec.scheduler not in ("none", "pbt"),
        scheduler=sweep.spec.scheduler,
        savings=ending.savings,
        confirmed=[_confirmed_row(ending, row) for row in ending.confirmed],
        failed=[trial for trial in ending.trials if trial.state == "failed"],
        most_failed=MOST_FAILED,
        pictures=_pictures(sweep.folder),
        version=__version__,
        made=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )


def spread_text(mean: float, error: float | None) -> str:
    """A mean with its standard error, if it has one."""
    return f"{mean:.2%}" if error is None else f"{mean:.2%} ± {error:.2%}"


def scheduler_text(spec: SweepSpec, epochs: int) -> str:
    """Who stops trials, in words."""
    after, share, whole = _times(spec.grace, "epoch"), f"one of {spec.reduction:g} goes on", _times(epochs, "epoch")
    return {
        "asha": f"ASHA: after {after}, and at each further rung, {share}; {whole} at most",
        "hyperband": f"HyperBand: rounds, in which after {after} or more {share}; {whole} at most",
        "median": f"Median: after {after} whoever is below the others' mean is stopped; {whole} at most",
        "pbt": f"Population based: the worst take over the best's state every {after}; {whole}",
        "none": f"None: all train {whole}",
    }[spec.scheduler]


def _facts(sweep: Sweep) -> dict[str, str]:
    spec, dataset = sweep.spec, sweep.recipe.data.dataset
    ways = {"random": "Random", "grid": f"Grid, {spec.levels} levels", "optuna": "Optuna (TPE)", "bohb": "BOHB"}
    return {
        "Recipe": sweep.recipe.name,
        "Data": f"{dataset} ({sweep.data_digest[:10]})",
        "Search": f"{ways[spec.search]}, seed {spec.search_seed}" + (f", {spec.seeds} seeds" if spec.seeds > 1 else ""),
        "Scheduler": scheduler_text(spec, sweep.recipe.total_epochs),
    }


def _tiles(sweep: Sweep, ending: Ending) -> list[Tile]:
    """The figures that are read first; the first one is what the search has brought."""
    saved, best = ending.savings, ending.ranked[0]
    confirmed = next((row for row in ending.confirmed if row.winner), None)
    first = Tile("Best validation accuracy", percent(best.mean), "not confirmed with other seeds")
    if confirmed and confirmed.test:
        label = f"Test accuracy of the winner, {_times(len(confirmed.test), 'seed')}"
        first = Tile(label, percent(sum(confirmed.test) / len(confirmed.test)), "measured once, for it alone")
    elif confirmed:
        first = Tile(
            "Confirmed validation accuracy", percent(confirmed.mean), _times(len(confirmed.accuracies), "seed")
        )
    seconds = sum(trial.seconds for trial in ending.trials)
    return [
        first,
        Tile("Best in the search", percent(best.mean), f"trial {_trials(best)}, validation")
        if confirmed
        else Tile("Best trial", _trials(best), f"to epoch {best.reached}"),
        Tile("Trials", str(saved.trials), counts(ending.trials).partition(": ")[2]),
        Tile("Configurations", str(len(ending.ranked)), f"{_times(len(sweep.space.dimensions), 'field')} searched"),
        Tile("Epochs trained", f"{saved.epochs:,}", f"of {saved.full:,}"),
        Tile("Saved", percent(saved.saved, 1), f"by {sweep.spec.scheduler}" if sweep.spec.scheduler != "none" else ""),
        Tile("Training time", clock(seconds), "of all trials together"),
    ]


def _times(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number != 1 else ''}"


def _trials(row: Ranked) -> str:
    return ", ".join(f"{number:03d}" for number in row.trials)


def _field_row(sweep: Sweep, number: int, best: Point) -> FieldRow:
    dimension = sweep.space.dimensions[number]
    path, before = dimension.path, value_at(sweep.recipe, dimension.path)
    values = ""
    if dimension.when is not None:
        values = f"{dimension.when[0]} = {' or '.join(map(_words, dimension.when[1]))}"
    domain, ways = dimension.domain, {"loguniform": " (logarithmic)", "int": " (whole numbers)"}
    listed = ", ".join(map(_words, domain.values))
    return FieldRow(
        path=path,
        domain=listed or f"{_words(domain.low)} to {_words(domain.high)}{ways.get(domain.kind, '')}",
        condition=values,
        before=_words(before),
        best=_words(best[path]) if path in best else "",
        changed=path in best and best[path] != before,
    )


def _words(value: object) -> str:
    """A value as people read it."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_words, value))})"
    return value_text(value).replace("e-0", "e-") if isinstance(value, float) else str(value)


def _shown_fields(sweep: Sweep, ending: Ending) -> list[str]:
    """The fields that the ranking shows: by weight where that is known, in the order of the space."""
    weighed = [field.path for field in ending.importance.fields]
    first = [*weighed, *(path for path in sweep.space.paths if path not in weighed)][:MOST_FIELDS]
    return [path for path in sweep.space.paths if path in first]


def _heads(paths: Sequence[str]) -> list[tuple[str, str]]:
    """Of each field the path, and what stands above its column: its own name where that says which one it is."""
    own = [path.rpartition(".")[2] for path in paths]
    return [
        (path, path if name == "name" or own.count(name) > 1 else name) for path, name in zip(paths, own, strict=True)
    ]


def _rank_row(ending: Ending, row: Ranked, shown: Sequence[str]) -> RankRow:
    return RankRow(
        place=row.place,
        trials=_trials(row),
        accuracy=spread_text(row.mean, row.error),
        share=row.mean,
        reached=row.reached,
        states=tuple(dict.fromkeys(row.states)),
        values=tuple(_words(row.point[path]) if path in row.point else "–" for path in shown),
        winner=bool(ending.confirmed) and row.group == ending.winner.group,
    )


def _confirmed_row(ending: Ending, row: Confirmed) -> ConfirmedRow:
    before = next(other for other in ending.ranked if other.group == row.group)
    return ConfirmedRow(
        trials=_trials(before),
        digest=row.recipe_digest,
        accuracies=tuple(map(percent, row.accuracies)),
        mean=spread_text(row.mean, row.error),
        searched=percent(before.mean),
        test=tuple(map(percent, row.test)),
        winner=row.winner,
    )


def _reached(ending: Ending) -> list[tuple[int, int]]:
    """How many trials came to which epoch and not further."""
    return sorted(Counter(trial.reached for trial in ending.trials).items())


def _pictures(folder: Path) -> list[Picture]:
    """Those that are there."""
    found = {said: (folder / name).read_bytes() for name, said in SAID.items() if (folder / name).exists()}
    return [
        Picture(said, round(LEAST_SCALE * int.from_bytes(png[16:20])), base64.b64encode(png).decode())  # 16: its width
        for said, png in found.items()
    ]
