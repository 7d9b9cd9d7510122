"""curves.png: a run's loss, accuracy and learning rate, and how well each class is recognised.

matplotlib is imported where it is used, as it takes a second, and without pyplot, which keeps global state.
"""

import importlib.util
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distcifar.errors import DataError
from distcifar.files import write_atomically
from distcifar.insight.downsample import Downsampler
from distcifar.tracking.rows import iter_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, Any]
Panel = Callable[["Axes"], None]

CJK_FONTS = ("NotoSansCJKsc-Regular.otf", "SimHei.ttf")  # files of mplfonts; the first also has kana and hangul
MOST_CLASSES = 25  # bars that can still be read
COLOURS = {"train": "#8b98a8", "validation": "#1668dc", "test": "#d9730d"}
DRAWN = {  # of the rows of each kind
    "step": ("train/loss", "train/lr"),
    "epoch": tuple(f"{split}/{metric}" for split in COLOURS for metric in ("loss", "accuracy")),
}
STYLE: Any = {  # of rcParams, which matplotlib types key by key
    "axes.axisbelow": True,
    "axes.edgecolor": "#c4ccd4",
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "figure.titlesize": 13,
    "font.size": 9.5,
    "grid.color": "#e8ebef",
    "legend.edgecolor": "none",
    "legend.framealpha": 0.85,
    "lines.solid_capstyle": "round",
    "text.parse_math": False,  # a $ in a class name is a $
    "xtick.color": "#56606b",
    "ytick.color": "#56606b",
}


def draw_run(folder: Path, summary: dict[str, Any]) -> None:
    """curves.png of a finished run, from its metrics and its summary."""
    classes = summary["per_class_accuracy"]
    per_class = [math.nan if accuracy is None else accuracy for accuracy in classes.values()]
    title = f"{summary['recipe']}: test accuracy {summary['test_accuracy']:.2%}"
    draw_curves(iter_rows(folder), folder / "curves.png", title=title, class_names=list(classes), per_class=per_class)


def draw_curves(
    rows: Iterable[Row], path: Path, *, title: str, class_names: Sequence[str] = (), per_class: Sequence[float] = ()
) -> None:
    """Draws metric rows into the PNG file `path`; what they lack is left out. Of a million, few points are kept.

    per_class: test accuracy (0-1) of each of `class_names`. Raises DataError if there is nothing to draw.
    """
    series = Series(rows)
    panels = _panels(series, class_names, per_class)
    if not panels:
        raise DataError(
            f"There is nothing to draw in {path}: {series.rows} rows without a finite number",
            "Curves need the loss, accuracy or learning rate of at least one step or epoch",
            "Draw them after training has begun",
        )
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    columns = 2 if len(panels) == 4 else len(panels)
    lines = len(panels) // columns
    with rc_context(STYLE | {"font.family": ["DejaVu Sans", *cjk_family()]}):
        figure = Figure(figsize=(5.5 * columns, 3.7 * lines + 0.4), layout="constrained")
        figure.suptitle(title, x=0.01, ha="left")
        for panel, axes in zip(panels, figure.subplots(lines, columns, squeeze=False).flat, strict=True):
            panel(axes)
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=130)
    write_atomically(path, png.getvalue())


class Series:
    """The curves in metric rows: finite values by epoch, of long runs a part of them."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = 0
        self.best: Row = {}  # the row of the best epoch
        self.best_epoch = 0
        self._curves = {(kind, key): Downsampler() for kind, keys in DRAWN.items() for key in keys}
        for row in rows:
            self.rows += 1
            self._add(row)

    def _add(self, row: Row) -> None:
        kind = row.get("kind", "")
        for key in DRAWN.get(kind, ()):
            value = row.get(key)
            if value is not None and math.isfinite(value):
                self._curves[kind, key].add(row["epoch"], value)
        self.best_epoch = row.get("best_epoch") or self.best_epoch
        if kind == "epoch" and row["epoch"] == self.best_epoch:
            self.best = row

    def curve(self, key: str, kind: str = "epoch") -> tuple[list[float], list[float]]:
        """Epochs and values of `key` in the rows of `kind`."""
        return self._curves[kind, key].curve()

    def usual(self, key: str, share: float) -> float:
        """What that share of the steps does not exceed."""
        values = sorted(self._curves["step", key].sample())
        return values[int(share * (len(values) - 1))]

    def splits(self, metric: str) -> list[str]:
        """The splits that epochs have measured `metric` on."""
        return [split for split in COLOURS if any(self.curve(f"{split}/{metric}"))]


def _panels(series: Series, class_names: Sequence[str], per_class: Sequence[float]) -> list[Panel]:
    """What there is to draw, each as a function of the axes to draw it in."""
    found: list[Panel] = []
    if any(series.curve("train/loss", "step")) or series.splits("loss"):
        found.append(partial(_draw_loss, series))
    if series.splits("accuracy"):
        found.append(partial(_draw_accuracy, series))
    if any(series.curve("train/lr", "step")):
        found.append(partial(_draw_learning_rate, series))
    if any(math.isfinite(accuracy) for accuracy in per_class):
        found.append(partial(_draw_classes, class_names, per_class))
    return found


def _draw_loss(series: Series, axes: "Axes") -> None:
    axes.set_title("Loss")
    steps, losses = series.curve("train/loss", "step")
    axes.plot(steps, losses, color=COLOURS["train"], alpha=0.35, linewidth=0.8)
    if losses:
        # The first steps, and a few outliers, would press the rest of the curve to the bottom.
        measured = [loss for split in COLOURS for loss in series.curve(f"{split}/loss")[1]]
        axes.set_ylim(0, 1.05 * max([series.usual("train/loss", 0.98), *measured]) or None)
    _draw_splits(series, "loss", axes)


def _draw_accuracy(series: Series, axes: "Axes") -> None:
    from matplotlib.ticker import PercentFormatter

    axes.set_title("Accuracy")
    _draw_splits(series, "accuracy", axes)
    values = [value for split in COLOURS for value in series.curve(f"{split}/accuracy")[1]]
    axes.set_ylim(max(0.0, min(values) - 0.05), min(1.01, max(values) + 0.05))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    best = series.best_epoch
    for split in ("validation", "test"):
        accuracy = series.best.get(f"{split}/accuracy")
        if series.best.get("epoch") != best or accuracy is None or not math.isfinite(accuracy):
            continue
        axes.axvline(best, color=COLOURS[split], linewidth=1, linestyle=":")
        axes.plot(best, accuracy, "o", color=COLOURS[split], markersize=9, markerfacecolor="none")
        found = f"best: epoch {best}, {accuracy:.2%} on {split}"
        axes.set_title(found, loc="right", color=COLOURS[split], fontsize=9.5)


def _draw_learning_rate(series: Series, axes: "Axes") -> None:
    axes.set_title("Learning rate")
    axes.plot(*series.curve("train/lr", "step"), color="#56606b", linewidth=1.3)
    axes.set_ylim(bottom=0)
    _label_epochs(axes)


def _draw_splits(series: Series, metric: str, axes: "Axes") -> None:
    """One line per split, a point per epoch."""
    for split in series.splits(metric):
        epochs, values = series.curve(f"{split}/{metric}")
        marker = "o" if len(epochs) <= 40 else ""
        axes.plot(epochs, values, marker=marker, markersize=3.5, color=COLOURS[split], label=split)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower left" if metric == "loss" else "lower right")
    _label_epochs(axes)


def _label_epochs(axes: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("epoch")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_classes(class_names: Sequence[str], per_class: Sequence[float], axes: "Axes") -> None:
    """A bar per class, the hardest on top; of many classes only those."""
    from matplotlib.ticker import PercentFormatter

    bars = sorted((accuracy, name) for name, accuracy in zip(class_names, per_class, strict=True) if accuracy >= 0)
    shown = bars[:MOST_CLASSES]
    few = len(shown) == len(bars)
    axes.set_title("Test accuracy of each class" if few else f"The {len(shown)} hardest of {len(bars)} classes")
    places = range(len(shown))
    size = 9.5 if len(shown) <= 12 else 6.5
    drawn = axes.barh(places, [accuracy for accuracy, _ in shown], color=COLOURS["test"], height=0.7)
    axes.bar_label(drawn, [f"{accuracy:.1%}" for accuracy, _ in shown], padding=3, fontsize=size, color="#56606b")
    axes.set_yticks(places, [name for _, name in shown], fontsize=size)
    axes.set_xlim(0, 1.12)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()


def cjk_family() -> list[str]:
    """The name of a font with Chinese glyphs, which matplotlib knows from now on; none if there is no such font."""
    from matplotlib import font_manager

    package = importlib.util.find_spec("mplfonts")  # importing it would change matplotlib's defaults
    if package is None or package.origin is None:
        return []
    for name in CJK_FONTS:
        file = Path(package.origin).parent / "fonts" / name
        if file.exists():
            known = {font.fname: font.name for font in font_manager.fontManager.ttflist}
            if str(file) not in known:
                font_manager.fontManager.addfont(file)
            return [known.get(str(file)) or font_manager.get_font(file).family_name]
    return []
