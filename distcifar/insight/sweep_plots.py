"""The three pictures of a search: learning curves with cut points, parallel coordinates, each field against the score.

matplotlib is imported where it is used, as in curves.py. All trials that have an epoch are drawn, failed ones with
what they came to; of several seeds each.
"""

import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distcifar.errors import DataError
from distcifar.files import write_atomically
from distcifar.insight.curves import STYLE, cjk_family
from distcifar.insight.report_charts import nice_ticks
from distcifar.insight.sweep_axes import FieldAxis, field_axis
from distcifar.sweep.folder import Sweep
from distcifar.sweep.ranking import State, Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CURVES, PARALLEL, PARAMETERS = PICTURES = ("curves.png", "parallel.png", "parameters.png")
BEST, MANY, CUT, FAILED, SOFT = "#d9730d", "#8b98a8", "#1668dc", "#c22f2f", "#56606b"
WORST = 0.1  # share of the trials that lie at the foot of the scale of colours
GOLDEN = 0.618  # its multiples are spread evenly, however many there are
ABSENT = -0.11  # where a line passes an axis whose field is not searched in that point
COLUMNS = 4
ENDS: dict[State, Any] = {  # where curves of trials in these states end
    "stopped": {"marker": "o", "color": CUT, "markerfacecolor": "white", "markersize": 4.5, "markeredgewidth": 1.2},
    "failed": {"marker": "x", "color": FAILED, "markersize": 7, "markeredgewidth": 1.8},
}
SPREAD = 0.7  # part of a listed value's room over which trials with that value are spread


def draw_sweep(sweep: Sweep, trials: Sequence[Trial], folder: Path) -> list[Path]:
    """Draws the three PNG files into `folder`. Raises DataError where no trial has an epoch yet."""
    shown = sorted((trial for trial in trials if trial.curve), key=lambda trial: (trial.score, trial.reached))
    if not shown:
        raise DataError(
            f"There is nothing to draw of the search {sweep.folder.name!r}: no trial has finished an epoch",
            "Pictures of a search need at least one epoch of one trial",
            "Draw them later",
        )
    axes = [field_axis(dimension, [trial.point for trial in shown]) for dimension in sweep.space.dimensions]
    name = sweep.folder.name
    drawn: dict[str, Callable[[Figure], None]] = {
        CURVES: lambda figure: _curves(figure, name, shown, sweep.recipe.total_epochs),
        PARALLEL: lambda figure: _parallel(figure, name, shown, axes),
        PARAMETERS: lambda figure: _parameters(figure, name, shown, axes),
    }
    for file, draw in drawn.items():
        write_atomically(folder / file, _png(draw))
    return [folder / file for file in drawn]


def _png(draw: "Callable[[Figure], None]") -> bytes:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE | {"font.family": ["DejaVu Sans", *cjk_family()]}):
        figure = Figure(layout="constrained")
        draw(figure)
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=130)
    return png.getvalue()


def counts(trials: Sequence[Trial]) -> str:
    """How many trials there are, and in which state: `24 trials: 3 finished, 21 stopped`."""
    states = ("finished", "stopped", "paused", "running", "failed")
    found = {state: sum(trial.state == state for trial in trials) for state in states}
    told = ", ".join(f"{count} {state}" for state, count in found.items() if count)
    return f"{len(trials)} trial{'s' if len(trials) != 1 else ''}: {told}"


def _curves(figure: "Figure", name: str, trials: Sequence[Trial], whole: int) -> None:
    """A line a trial; where one was stopped its line ends with a mark. The best one lies above all."""
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure.set_size_inches(10, 5.2)
    axes = figure.subplots()
    axes.set_title(f"{name}: validation accuracy")
    axes.set_title(counts(trials), loc="right", color=SOFT, fontsize=9.5)
    best = trials[-1]
    for number, trial in enumerate(trials[:-1]):
        label = "" if number else "the others"
        marker = "." if len(trial.curve) == 1 and trial.state not in ENDS else ""
        look: Any = {"color": MANY, "alpha": 0.6, "linewidth": 0.9, "marker": marker, "markersize": 4, "label": label}
        axes.plot(*zip(*trial.curve, strict=True), **look)
    for state, look in ENDS.items():
        ends = [trial.curve[-1] for trial in trials if trial.state == state]
        if ends:
            axes.plot(*zip(*ends, strict=True), linestyle="", label=f"{state} here", **look)
    label = f"best: trial {best.number:03d}, {best.score:.2%}"
    dots = "o" if len(best.curve) <= 40 else ""
    axes.plot(*zip(*best.curve, strict=True), color=BEST, linewidth=2.2, marker=dots, markersize=4, label=label)
    axes.legend(loc="lower right")
    axes.set_xlabel("epoch")
    axes.set_xlim(0, whole * 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))


def _parallel(figure: "Figure", name: str, trials: Sequence[Trial], fields: Sequence[FieldAxis]) -> None:
    """A vertical axis a field, and the scale of colours as the last one; a line a trial, the best one thick."""
    width = max(7.0, 1.3 * len(fields) + 2.2)
    figure.set_size_inches(width, 5.8)
    axes = figure.subplots()
    axes.set_title(f"{name}: what was tried, coloured by validation accuracy; pale: not finished", pad=46)
    axes.set_axis_off()
    axes.set_xlim(-0.4, len(fields) + 0.6)
    axes.set_ylim(ABSENT - 0.05, 1.02)
    scale = ScoreScale(trials)
    xs = range(len(fields) + 1)
    for rank, trial in enumerate(trials):
        places = [*(_spread_place(field, trial, rank / len(trials)) for field in fields), scale.place(trial.score)]
        pale = trial.state != "finished"
        look = {"color": scale.colour(trial.score), "alpha": 0.4 if pale else 0.9, "linewidth": 0.9 if pale else 1.5}
        if trial is trials[-1]:
            axes.plot(xs, places, color="white", linewidth=5.5)
            look |= {"alpha": 1.0, "linewidth": 3.2}
        axes.plot(xs, places, **look)  # type: ignore[arg-type]
    for x, field in enumerate(fields):
        absent = any(field.path not in trial.point for trial in trials)
        _vertical(axes, x, field.lines, [*field.ticks(), *([(ABSENT, "not used")] if absent else [])])
    _vertical(axes, len(fields), ("validation", "accuracy"), [])
    scale.draw(axes, len(fields), thick=0.12 * (len(fields) + 1) / width)


def _spread_place(field: FieldAxis, trial: Trial, share: float) -> float:
    """Where the trial's line passes the axis; lines through one listed value lie side by side."""
    if field.path not in trial.point:
        return ABSENT
    return field.place(trial.point[field.path]) + _spread(field, share)


def _spread(field: FieldAxis, share: float) -> float:
    """How far from its place a trial is drawn: share 0 to 1 goes over most of the room of a listed value."""
    return (share - 0.5) * SPREAD / len(field.listed) if field.listed else 0.0


def _vertical(axes: "Axes", x: float, names: tuple[str, str], ticks: Sequence[tuple[float, str]]) -> None:
    axes.plot([x, x], [0, 1], color=SOFT, linewidth=1.1)
    behind = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8}
    for place, text in ticks:
        axes.plot([x - 0.02, x + 0.02], [place, place], color=SOFT, linewidth=1.1)
        axes.text(x + 0.04, place, text, fontsize=8, va="center", color="#17212b", bbox=behind, zorder=4)
    axes.annotate(names[0], (x, 1), (0, 22), textcoords="offset points", ha="center", fontsize=7.5, color=SOFT)
    axes.annotate(names[1], (x, 1), (0, 10), textcoords="offset points", ha="center", fontsize=8.5)


class ScoreScale:
    """Scores as places from 0 to 1 and as colours; the worst tenth lies at the foot, as it would take all the room."""

    def __init__(self, trials: Sequence[Trial]) -> None:
        from matplotlib import colormaps

        scores = sorted(trial.score for trial in trials)
        self.low, self.high = scores[int(len(scores) * WORST)], scores[-1]
        self._cut = scores[0] < self.low
        self._colours = colormaps["viridis_r"]

    def place(self, score: float) -> float:
        return max(0.0, (score - self.low) / (self.high - self.low)) if self.high > self.low else 1.0

    def colour(self, score: float) -> tuple[float, float, float, float]:
        return self._colours(0.05 + 0.95 * self.place(score))

    def draw(self, axes: "Axes", x: float, thick: float) -> None:
        """The colours as a bar beside the axis at `x`, with what they stand for."""
        steps = [[0.05 + 0.95 * step / 255] for step in range(256)]
        axes.imshow(
            steps, extent=(x, x + thick, 0, 1), origin="lower", aspect="auto", cmap=self._colours, vmin=0, vmax=1
        )
        inner = [score for score in nice_ticks(self.low, self.high, most=6) if 0.07 < self.place(score) < 0.93]
        for score in dict.fromkeys([self.low, *inner, self.high]):
            foot = "≤ " if self._cut and score == self.low else ""
            digits = 1 if score in (self.low, self.high) or self.high - self.low < 0.05 else 0
            axes.text(x + 1.5 * thick, self.place(score), f"{foot}{score:.{digits}%}", fontsize=8, va="center")


def _parameters(figure: "Figure", name: str, trials: Sequence[Trial], fields: Sequence[FieldAxis]) -> None:
    """A panel a field: its values and the scores; finished trials are filled."""
    columns = min(COLUMNS, len(fields))
    lines = math.ceil(len(fields) / columns)
    figure.set_size_inches(max(6.0, 3.3 * columns), 2.6 * lines + 0.7)
    figure.suptitle(f"{name}: each field and the validation accuracy", x=0.01, ha="left")
    panels = list(figure.subplots(lines, columns, squeeze=False, sharey=True).flat)
    for axes, field in zip(panels, fields, strict=False):
        _panel(axes, field, trials)
    for axes in panels[len(fields) :]:
        axes.set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=len(handles))


def _panel(axes: "Axes", field: FieldAxis, trials: Sequence[Trial]) -> None:
    from matplotlib.ticker import PercentFormatter

    axes.set_title(field.path, fontsize=9.5)
    here = [trial for trial in trials if field.path in trial.point]
    if len(here) < len(trials):
        axes.set_title(f"{len(here)} of {len(trials)} trials", loc="right", fontsize=8, color=SOFT)
    looks: dict[str, dict[str, Any]] = {
        "finished": {"facecolors": CUT, "edgecolors": "white", "linewidths": 0.4},
        "not finished": {"facecolors": "none", "edgecolors": MANY, "linewidths": 1.0},
    }
    for label, look in looks.items():
        these = [trial for trial in here if (trial.state == "finished") == (label == "finished")]
        xs = [field.place(trial.point[field.path]) + _spread(field, trial.number * GOLDEN % 1) for trial in these]
        axes.scatter(xs, [trial.score for trial in these], s=22, label=label, zorder=2, **look)
        if trials[-1] in these:
            best = xs[these.index(trials[-1])]
            axes.scatter(best, trials[-1].score, s=95, facecolors="none", edgecolors=BEST, linewidths=1.8, zorder=3)
    axes.scatter(
        [], [], s=95, facecolors="none", edgecolors=BEST, linewidths=1.8, label=f"best: trial {trials[-1].number:03d}"
    )
    ticks = field.ticks(most=4)
    axes.set_xlim(-0.04, 1.04)
    axes.set_xticks([place for place, _ in ticks], [text for _, text in ticks], fontsize=8)
    if field.listed:
        axes.grid(visible=False, axis="x")
        for number in range(1, len(field.listed)):
            axes.axvline(number / len(field.listed), color="#e8ebef", linewidth=0.8)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
