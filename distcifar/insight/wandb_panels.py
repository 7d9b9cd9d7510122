"""The panels of a W&B report: W&B draws them from the runs themselves. Speaks with no server."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from distcifar.insight.report_run import RunRecord

if TYPE_CHECKING:
    import wandb_workspaces.reports.v2 as wr
    from wandb_workspaces.reports.v2.interface import PanelTypes

CURVES = (  # title, names of metrics as tracking/shipping/content.py gives them, what they are drawn over
    ("Loss", ("epoch/train/loss", "validation/loss"), "epoch"),
    ("Accuracy", ("epoch/train/accuracy", "validation/accuracy"), "epoch"),
    ("Loss of each step", ("train/loss",), "step"),
    ("Learning rate", ("train/lr",), "step"),
    ("Gradient norm", ("train/grad_norm",), "step"),
    ("Images per second", ("perf/images_per_s",), "step"),
)
BEST = "validation/accuracy.max"  # of each run, as the summary of that metric has it
COLOURS = ("#1668dc", "#d9730d", "#14803c", "#8b3fd1", "#c2255c", "#0c8599", "#8a6d00", "#5c677d")
NOT_SEARCHED = ("name", "description", "seed", "reported_accuracy")
LOG_RATIO = 20.0  # between the largest and the smallest value of a field, from which on its axis is logarithmic
MOST_FIELDS = 12  # that one picture shows


def runset(ids: Sequence[str]) -> "wr.Runset":
    """Of the report's own project: one with a name could not be written without asking the server for its number."""
    import wandb_workspaces.reports.v2 as wr

    settings = {run: wr.RunSettings(color=colour) for run, colour in zip(ids, COLOURS, strict=False)}
    return wr.Runset(name="runs", filters=f"ID in {list(ids)!r}", run_settings=settings)


def curves(ids: Sequence[str]) -> "wr.PanelGrid":
    """Losses, accuracies, rate and speed."""
    import wandb_workspaces.reports.v2 as wr

    panels: list[PanelTypes] = [
        wr.LinePlot(title=title, x=axis, y=list(metrics), layout=_half(place))
        for place, (title, metrics, axis) in enumerate(CURVES)
    ]
    return wr.PanelGrid(runsets=[runset(ids)], panels=panels)


def comparer(ids: Sequence[str]) -> "wr.PanelGrid":
    """A table of what differs between the runs' configurations."""
    import wandb_workspaces.reports.v2 as wr

    panel = wr.RunComparer(diff_only="split", layout=wr.Layout(w=24, h=12))
    return wr.PanelGrid(runsets=[runset(ids)], panels=[panel])


def fields_and_accuracy(ids: Sequence[str], varied: Mapping[str, Sequence[Any]]) -> "wr.PanelGrid":
    """What a search's own page shows: parallel coordinates, each field's importance, each against the accuracy."""
    import wandb_workspaces.reports.v2 as wr

    best = wr.SummaryMetric(BEST)
    columns = [
        wr.ParallelCoordinatesPlotColumn(wr.Config(path), display_name=path, log=is_logarithmic(values))
        for path, values in varied.items()
    ]
    columns.append(wr.ParallelCoordinatesPlotColumn(best, display_name="best validation accuracy"))
    panels: list[PanelTypes] = [
        wr.ParallelCoordinatesPlot(title="Configurations", columns=columns, layout=wr.Layout(w=24, h=10)),
        wr.ParameterImportancePlot(with_respect_to=BEST, layout=wr.Layout(y=10, w=24, h=8)),
    ]
    panels += [
        wr.ScatterPlot(
            title=path, x=wr.Config(path), y=best, log_x=is_logarithmic(values), layout=_half(place, below=18)
        )
        for place, (path, values) in enumerate(varied.items())
    ]
    return wr.PanelGrid(runsets=[runset(ids)], panels=panels)


def varied_fields(records: Sequence[RunRecord]) -> dict[str, list[Any]]:
    """By dotted path, the values of the recipe's fields that differ among the runs; at most MOST_FIELDS of them."""
    flat = [dict(_leaves(run.recipe)) for run in records]
    paths = [path for path in dict.fromkeys(path for recipe in flat for path in recipe) if path not in NOT_SEARCHED]
    found = {path: [recipe.get(path) for recipe in flat] for path in paths}
    varied = {path: values for path, values in found.items() if len({str(value) for value in values}) > 1}
    return dict(list(varied.items())[:MOST_FIELDS])


def is_logarithmic(values: Sequence[Any]) -> bool:
    """Whether an axis of these values is better a logarithmic one: numbers above 0 over more than a decade."""
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    return len(numbers) == len(values) > 0 and min(numbers) > 0 and max(numbers) >= LOG_RATIO * min(numbers)


def _leaves(value: Mapping[str, Any], path: str = "") -> list[tuple[str, Any]]:
    """Dotted paths and values of all that is no object itself."""
    found: list[tuple[str, Any]] = []
    for name, item in value.items():
        found += _leaves(item, f"{path}{name}.") if isinstance(item, Mapping) else [(path + name, item)]
    return found


def _half(place: int, below: int = 0) -> "wr.Layout":
    """The place of a panel of half the width, the first being 0; below: rows that are taken above."""
    import wandb_workspaces.reports.v2 as wr

    return wr.Layout(x=12 * (place % 2), y=below + 7 * (place // 2), w=12, h=7)
