"""Line charts for an HTML page: the lines are SVG, every word is HTML.

Drawn here and not by matplotlib, because a report is read on a phone, on a screen and in the dark: an SVG of matplotlib
is one picture whose text shrinks with it and whose colours are fixed. Here the lines stretch with the page (their
strokes do not), labels keep the size of the text, colours are CSS variables, and a chart of a thousand points is 10 KB.
Nothing of it is markup: a Chart is numbers and texts, which the template places and escapes.

Places are percent of the plot area from its left and upper edge; lines live in a box of WIDTH x HEIGHT.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

WIDTH, HEIGHT = 1000, 400
MOST_BANDS = 60  # stretches of the x axis that tell their values when pointed at
MOST_DOTS = 40  # points of a line that are marked


@dataclass(frozen=True)
class Series:
    """Values over epochs. css: the classes of the line; a faint one has no place in the legend and tells no values."""

    label: str
    css: str
    xs: Sequence[float]
    ys: Sequence[float]
    faint: bool = False
    dots: bool = False


@dataclass(frozen=True)
class Line:
    css: str
    faint: bool
    points: str  # of a polyline
    dots: tuple[str, ...]  # paths without length, whose round ends are the dots


@dataclass(frozen=True)
class Tick:
    place: float
    text: str


@dataclass(frozen=True)
class Band:
    left: float
    width: float
    text: str


@dataclass(frozen=True)
class Chart:
    title: str
    note: str
    lines: tuple[Line, ...]
    legend: tuple[tuple[str, str], ...]  # css and label
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    bands: tuple[Band, ...]
    mark: float | None = None  # a place on the x axis, of the best epoch


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    write: Callable[[float], str] = "{:.4g}".format,
    bounds: tuple[float | None, float | None] = (None, None),
    limits: tuple[float, float] = (-math.inf, math.inf),
    end: float = 0.0,
    mark: float | None = None,
    note: str = "",
) -> Chart | None:
    """A chart of `series`; None if there is no point.

    write: a value as text. bounds: of the y axis, each as the values want it if None. limits: what it never
    passes, as no share is above 100 %. end: the least last epoch.
    """
    drawn = [line for line in series if len(line.xs)]
    if not drawn:
        return None
    right = max([end, *(line.xs[-1] for line in drawn)]) or 1.0
    low, high, ticks = _y_axis(drawn, bounds, limits)

    def place_x(x: float) -> float:
        return x / right

    def place_y(y: float) -> float:
        return min(1.2, max(-0.2, (high - y) / (high - low)))  # what lies far outside is cut off by the box

    legend = dict.fromkeys((line.css, line.label) for line in drawn if not line.faint)
    return Chart(
        title=title,
        note=note,
        lines=tuple(_line(line, place_x, place_y) for line in drawn),
        legend=tuple(legend) if len(legend) > 1 else (),
        x_ticks=tuple(Tick(100 * place_x(x), f"{x:g}") for x in nice_ticks(0.0, right, most=6)),
        y_ticks=tuple(Tick(100 * place_y(y), write(y)) for y in ticks),
        bands=tuple(_bands([line for line in drawn if not line.faint], right, write)),
        mark=None if mark is None else 100 * place_x(mark),
    )


def nice_ticks(low: float, high: float, *, most: int) -> list[float]:
    """At most `most` round numbers between `low` and `high`, evenly apart."""
    rough = (high - low) / max(1, most - 1)
    if not rough > 0:
        return [low]
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{number * step:.10g}") for number in range(first, last + 1)]


def _y_axis(
    series: Sequence[Series], bounds: tuple[float | None, float | None], limits: tuple[float, float]
) -> tuple[float, float, list[float]]:
    """Bounds of the y axis and its ticks. A bound that is not given gives way to the next tick."""
    values = [value for line in series for value in line.ys]
    low = min(values) if bounds[0] is None else bounds[0]
    high = max(values) if bounds[1] is None else bounds[1]
    if not high > low:
        low, high = (max(limits[0], low - 0.5), min(limits[1], low + 0.5)) if low else (0.0, 1.0)
    ticks = nice_ticks(low, high, most=6)
    step = ticks[1] - ticks[0] if len(ticks) > 1 else high - low
    if bounds[0] is None:
        low = math.floor(low / step + 1e-9) * step
    if bounds[1] is None:
        high = math.ceil(high / step - 1e-9) * step
    low, high = max(low, limits[0]), min(high, limits[1])
    return low, high, nice_ticks(low, high, most=7)


def _line(series: Series, place_x: Callable[[float], float], place_y: Callable[[float], float]) -> Line:
    places = [
        (f"{WIDTH * place_x(x):.1f}", f"{HEIGHT * place_y(y):.1f}") for x, y in zip(series.xs, series.ys, strict=True)
    ]
    dotted = len(places) == 1 or (series.dots and len(places) <= MOST_DOTS)
    return Line(
        css=series.css,
        faint=series.faint,
        points=" ".join(f"{x},{y}" for x, y in places),
        dots=tuple(f"M{x} {y}h.01" for x, y in places) if dotted else (),
    )


def _bands(series: Sequence[Series], right: float, write: Callable[[float], str]) -> list[Band]:
    """What to read at each stretch of the x axis: the nearest values."""
    places = sorted({x for line in series for x in line.xs})
    if not places:  # only faint lines: no epoch is finished
        return []
    if len(places) > MOST_BANDS:
        places = [right * (number + 0.5) / MOST_BANDS for number in range(MOST_BANDS)]
    edges = [0.0, *((a + b) / 2 for a, b in pairwise(places)), right]
    found = []
    for place, (left, end) in zip(places, pairwise(edges), strict=True):
        values = [f"{line.label}: {write(line.ys[_nearest(line.xs, place)])}" for line in series]
        text = "\n".join([f"epoch {place:.4g}", *values])
        found.append(Band(WIDTH * left / right, WIDTH * (end - left) / right, text))
    return found


def _nearest(xs: Sequence[float], x: float) -> int:
    after = min(bisect_left(xs, x), len(xs) - 1)
    return after - 1 if after and x - xs[after - 1] < xs[after] - x else after
