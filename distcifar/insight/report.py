"""The report of one or several runs as a single HTML file: no script, nothing from elsewhere, fit for a mail.

What is said comes from report_facts.py, report_classes.py and report_charts.py as texts and numbers; how it looks is
report.html.j2 alone, where every text is escaped: names of runs and classes are whatever people have typed.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from distcifar import __version__
from distcifar.config import Recipe
from distcifar.insight import report_classes, report_facts
from distcifar.insight.downsample import downsample
from distcifar.insight.pages import page_environment, write_page
from distcifar.insight.report_charts import HEIGHT, WIDTH, Chart, Series, line_chart
from distcifar.insight.report_facts import percent
from distcifar.insight.report_registry import registry_rows
from distcifar.insight.report_run import RunRecord

MOST_COLOURS = 8  # lines that can be told apart
MOST_SAMPLES = {1: 32}  # of one run; of each of several:
FEW_SAMPLES = 12
LONGEST_NAME = 100  # bytes of a file's name that are taken from names of runs
MOST_STEP_POINTS = 4000  # of all lines of a chart together


@dataclass(frozen=True)
class RunPart:
    """What the page shows of one run."""

    run: RunRecord
    colour: str
    accuracy: float | None
    tiles: list[report_facts.Tile]
    promise: report_facts.Promise
    classes: list[report_classes.ClassRow]
    confusion: list[tuple[str, list[report_classes.Cell]]]
    pairs: list[report_classes.Pair]
    samples: list[report_classes.Sample]
    epochs: tuple[list[str], list[list[str]]]
    events: list[report_facts.Event]
    earlier_events: int
    configuration: dict[str, dict[str, str]]


def report_path(folders: Sequence[Path], runs: Path, group: str = "") -> Path:
    """Where a report of these runs goes if nobody says otherwise: into the run, or beside the runs.

    Reports of other runs have other names: what cannot be told from the names alone, a digest tells.
    """
    if len(folders) == 1 and not group:
        return folders[0] / "report.html"
    names = [group] if group else [folder.name for folder in folders]
    plain = ["".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in name) for name in names]
    elsewhere = [folder for folder in folders if folder.absolute().parent != runs.absolute()]
    stem = "+".join(plain).encode()
    if plain != names or len(stem) > LONGEST_NAME or (elsewhere and not group):
        about = "\n".join([group] if group else map(str, folders)).encode(errors="replace")
        stem = stem[:LONGEST_NAME] + b"-" + hashlib.sha256(about).hexdigest()[:8].encode()
    return runs / f"report-{stem.decode(errors='ignore')}.html"


def write_report(
    records: Sequence[RunRecord], path: Path, *, runs: Path, group: str = "", known: Mapping[str, Recipe] | None = None
) -> None:
    """Writes the report of `records` to `path`. known: recipes as they are published, by name.

    Raises ConfigError where `path` is a folder, and StorageError where it cannot be written.
    """
    write_page(render(records, runs=runs, group=group, known=known or {}), path)


def render(
    records: Sequence[RunRecord], *, runs: Path, group: str = "", known: Mapping[str, Recipe] | None = None
) -> str:
    """The page: of one run all that there is, of several their comparison first. runs: where the registry lies."""
    parts = [_part(run, len(records), known or {}) for run in records]
    if len(parts) > 1:
        parts = _best_first(parts)
    environment = page_environment()
    environment.filters |= {"percent": percent, "tone": report_facts.tone, "minute": report_facts.minute}
    environment.globals |= {"where": report_facts.where, "data_of": report_facts.data_of}
    environment.globals |= {"device": report_facts.device, "workers": report_facts.workers}
    template = environment.get_template("report.html.j2")
    single = len(parts) == 1
    versions, problems = registry_rows(runs, records)
    return template.render(
        title=parts[0].run.name if single else group or f"{len(parts)} runs",
        group=group,
        parts=parts,
        single=single,
        charts=_charts_of_one(parts[0].run) if single else _charts_of_several(parts),
        plot=(WIDTH, HEIGHT),
        fields=[] if single else report_facts.compare([part.run for part in parts]),
        class_table=[] if single else _class_table(parts),
        registry=versions,
        registry_problems=problems,
        most_classes=report_classes.MOST_CLASSES,
        version=__version__,
        made=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )


def _part(run: RunRecord, among: int, known: Mapping[str, Recipe]) -> RunPart:
    events, earlier = report_facts.timeline(run)
    return RunPart(
        run=run,
        colour="",
        accuracy=report_facts.accuracy_of(run)[1],
        tiles=report_facts.tiles(run),
        promise=report_facts.promise(run, known),
        classes=report_classes.class_rows(run),
        confusion=report_classes.confusion_cells(run),
        pairs=report_classes.confused_pairs(run),
        samples=report_classes.samples(run, MOST_SAMPLES.get(among, FEW_SAMPLES)),
        epochs=report_facts.epoch_table(run),
        events=events,
        earlier_events=earlier,
        configuration=report_facts.configuration(run),
    )


def _best_first(parts: Sequence[RunPart]) -> list[RunPart]:
    """Finished runs by accuracy, then the others; the first ones get colours of their own."""
    order = sorted(parts, key=lambda part: (not part.run.summary, -(part.accuracy or 0.0)))
    colours = [f"c{place + 1}" if place < MOST_COLOURS else "rest" for place in range(len(order))]
    return [_coloured(part, colour) for part, colour in zip(order, colours, strict=True)]


def _coloured(part: RunPart, colour: str) -> RunPart:
    return RunPart(**(vars(part) | {"colour": colour}))


def _charts_of_one(run: RunRecord) -> list[Chart]:
    losses, accuracies = _splits(run, "loss"), _splits(run, "accuracy")
    steps = Series("each step", "train", *run.steps["train/loss"], faint=True)
    high = max([run.usual["train/loss"], *(y for line in losses for y in line.ys)])
    best = float(run.best_epoch) or None
    found = [
        line_chart("Loss", [steps, *losses], bounds=(0.0, 1.05 * high or None), end=1.0),
        _accuracy_chart(accuracies, best),
        *_charts_of_steps([("", "plain", run)]),
    ]
    return [chart for chart in found if chart is not None]


def _charts_of_several(parts: Sequence[RunPart]) -> list[Chart]:
    """The same, with a line for each run; the last ones are drawn first, so that the best lie above."""
    lines = [(part.run.name, part.colour, part.run) for part in reversed(parts)]
    losses, accuracies = [
        [
            Series(name, colour, *run.epoch_points(f"{_judge(run)}/{metric}"), faint=colour == "rest", dots=True)
            for name, colour, run in lines
        ]
        for metric in ("loss", "accuracy")
    ]
    high = max((y for line in losses for y in line.ys), default=0.0)
    note = " and ".join(sorted({_judge(part.run) for part in parts}))
    found = [
        line_chart("Loss", losses, bounds=(0.0, 1.05 * high or None), end=1.0, note=note),
        _accuracy_chart(accuracies, note=note),
        *_charts_of_steps(lines),
    ]
    return [chart for chart in found if chart is not None]


def _charts_of_steps(lines: Sequence[tuple[str, str, RunRecord]]) -> list[Chart | None]:
    """Learning rate and gradient norm over the steps of runs."""
    found, most = [], max(100, MOST_STEP_POINTS // len(lines))
    for title, column, label in (("Learning rate", "train/lr", "rate"), ("Gradient norm", "train/grad_norm", "norm")):
        series = [
            Series(name or label, colour, *downsample(*run.steps[column], most=most), faint=colour == "rest")
            for name, colour, run in lines
        ]
        high = max(run.usual[column] for _, _, run in lines)
        found.append(line_chart(title, series, bounds=(0.0, 1.05 * high or None), end=1.0))
    return found


def _accuracy_chart(series: Sequence[Series], best: float | None = None, note: str = "") -> Chart | None:
    values = [y for line in series for y in line.ys]
    high = 1.0 if values and max(values) > 0.9 else None
    if best is not None and not note:
        note = f"best epoch {best:g}"
    return line_chart(
        "Accuracy", series, write=_short_percent, bounds=(None, high), limits=(0.0, 1.0), end=1.0, mark=best, note=note
    )


def _short_percent(share: float) -> str:
    return f"{share:.2%}".replace(".00", "")


def _splits(run: RunRecord, metric: str) -> list[Series]:
    splits = ("train", "validation", "test")
    return [Series(split, split, *run.epoch_points(f"{split}/{metric}"), dots=True) for split in splits]


def _judge(run: RunRecord) -> str:
    """The split by which a run's epochs are compared with those of other runs."""
    return next((split for split in ("validation", "test") if len(run.epoch_points(f"{split}/loss")[0])), "train")


def _class_table(parts: Sequence[RunPart]) -> list[tuple[str, list[float | None]]]:
    """Accuracy of each class in each run that was measured; the hardest class of the best run first."""
    tables: list[Mapping[str, Any]] = [part.run.summary["per_class_accuracy"] for part in parts if part.classes]
    names = dict.fromkeys(name for part in parts for name in (row.name for row in part.classes))
    return [(name, [table.get(name) for table in tables]) for name in names]
