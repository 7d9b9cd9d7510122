"""A benchmark's picture: a panel for each comparison, of bars, of bars made up of parts, or of curves."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distcifar.benchmark.results import Comparison, Line
from distcifar.benchmark.screen import spelled
from distcifar.files import write_atomically
from distcifar.insight.curves import STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OURS, THEIRS, WHISKER = "#1668dc", "#8b98a8", "#56606b"


def draw(comparisons: Sequence[Comparison], path: Path, *, title: str) -> None:
    """Writes the PNG file `path`."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        heights = [1.2 + (1.8 if _is_curve(each) else 0.38 * len(each.lines)) for each in comparisons]
        figure = Figure(figsize=(9, sum(heights) + 0.4), layout="constrained")
        figure.suptitle(title, x=0.01, ha="left")
        panels = figure.subplots(len(comparisons), 1, squeeze=False, height_ratios=heights)[:, 0]
        for comparison, axes in zip(comparisons, panels, strict=True):
            axes.set_title(comparison.title)
            axes.set_xlabel(comparison.unit)
            (_curves if _is_curve(comparison) else _bars)(comparison, axes)
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=110)
    write_atomically(path, png.getvalue())


def _is_curve(comparison: Comparison) -> bool:
    return all(line.x is not None for line in comparison.lines)


def _bars(comparison: Comparison, axes: "Axes") -> None:
    """Medians with whiskers from the lowest to the highest; parts side by side within a bar."""
    lines = comparison.lines
    stages = list(dict.fromkeys(part for line in lines for part in line.parts))  # one colour each, in all bars
    for place, line in enumerate(lines):
        left = 0.0
        for part, value in line.parts.items():
            axes.barh(place, value, left=left, height=0.7, color=f"C{stages.index(part) % 10}")
            if value > 0.06 * max(each.median for each in lines):
                axes.text(left + value / 2, place, part, ha="center", va="center", fontsize=7, color="white")
            left += value
        if not line.parts:
            axes.barh(place, line.median, height=0.7, color=THEIRS if line.name == comparison.baseline else OURS)
    medians = [line.median for line in lines]
    below = [line.median - min(line.values) for line in lines]
    above = [max(line.values) - line.median for line in lines]
    axes.errorbar(medians, range(len(lines)), xerr=[below, above], fmt="none", ecolor=WHISKER, capsize=3, linewidth=1)
    axes.set_yticks(range(len(lines)), [f"{line.name}: {spelled(line.median)}" for line in lines])
    axes.set_xlim(left=0)
    axes.grid(visible=False, axis="y")
    axes.invert_yaxis()


def _curves(comparison: Comparison, axes: "Axes") -> None:
    """A curve for each group of lines, with whiskers."""
    curves: dict[str, list[Line]] = {}
    for line in comparison.lines:
        curves.setdefault(line.curve, []).append(line)
    for name, lines in curves.items():
        x = [line.x or 0.0 for line in lines]
        medians = [line.median for line in lines]
        below = [line.median - min(line.values) for line in lines]
        above = [max(line.values) - line.median for line in lines]
        axes.errorbar(x, medians, yerr=[below, above], marker="o", markersize=3.5, capsize=3, linewidth=1.3, label=name)
    axes.set_xlabel("")
    axes.set_ylabel(comparison.unit)
    axes.set_ylim(0, 1.08 * max(max(line.values) for line in comparison.lines))
    axes.legend(loc="best")
