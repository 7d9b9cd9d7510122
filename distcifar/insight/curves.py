"""curves.png: a run's loss, accuracy and learning rate, and how well each class is recognised.

matplotlib is imported where it is used, as it takes a second, and without pyplot, which keeps global state.
"""

import importlib.util
import io
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distcifar.errors import DataError
from distcifar.files import write_atomically
from distcifar.tracking.journal import read_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows = Sequence[Mapping[str, Any]]
Panel = Callable[["Axes"], None]

CJK_FONTS = ("NotoSansCJKsc-Regular.otf", "SimHei.ttf")  # files of mplfonts; the first also has kana and hangul
MOST_CLASSES = 25  # bars that can still be read
COLOURS = {"train": "#8b98a8", "validation": "#1668dc", "test": "#d9730d"}
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
    rows = read_rows(folder / "metrics.jsonl")
    title = f"{summary['recipe']}: test accuracy {summary['test_accuracy']:.2%}"
    draw_curves(rows, folder / "curves.png", title=title, class_names=list(classes), per_class=per_class)


def draw_curves(
    rows: Rows, path: Path, *, title: str, class_names: Sequence[str] = (), per_class: Sequence[float] = ()
) -> None:
    """Draws the rows of a metrics.jsonl into the PNG file `path`; what the rows lack is left out.

    per_class: test accuracy (0-1) of each of `class_names`. Raises DataError if there is nothing to draw.
    """
    panels = _panels(rows, class_names, per_class)
    if not panels:
        raise DataError(
            f"There is nothing to draw in {path}: {len(rows)} rows without a finite number",
            "Curves need the loss, accuracy or learning rate of at least one step or epoch",
            "Draw them after training has begun",
        )
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    columns = 2 if len(panels) == 4 else len(panels)
    lines = len(panels) // columns
    with rc_context(STYLE | {"font.family": ["DejaVu Sans", *_cjk_family()]}):
        figure = Figure(figsize=(5.5 * columns, 3.7 * lines + 0.4), layout="constrained")
        figure.suptitle(title, x=0.01, ha="left")
        for panel, axes in zip(panels, figure.subplots(lines, columns, squeeze=False).flat, strict=True):
            panel(axes)
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=130)
    write_atomically(path, png.getvalue())


def _panels(rows: Rows, class_names: Sequence[str], per_class: Sequence[float]) -> list[Panel]:
    """What there is to draw, each as a function of the axes to draw it in."""
    found: list[Panel] = []
    if any(_series(rows, "train/loss")) or _splits(rows, "loss"):
        found.append(partial(_draw_loss, rows))
    if _splits(rows, "accuracy"):
        found.append(partial(_draw_accuracy, rows))
    if any(_series(rows, "train/lr", kind="step")):
        found.append(partial(_draw_learning_rate, rows))
    if any(math.isfinite(accuracy) for accuracy in per_class):
        found.append(partial(_draw_classes, class_names, per_class))
    return found


def _draw_loss(rows: Rows, axes: "Axes") -> None:
    axes.set_title("Loss")
    steps, losses = _series(rows, "train/loss", kind="step")
    axes.plot(steps, losses, color=COLOURS["train"], alpha=0.35, linewidth=0.8)
    if losses:
        # The first steps, and a few outliers, would press the rest of the curve to the bottom.
        usual = sorted(losses)[int(0.98 * (len(losses) - 1))]
        measured = [loss for split in COLOURS for loss in _series(rows, f"{split}/loss")[1]]
        axes.set_ylim(0, 1.05 * max([usual, *measured]) or None)
    _draw_splits(rows, "loss", axes)


def _draw_accuracy(rows: Rows, axes: "Axes") -> None:
    from matplotlib.ticker import PercentFormatter

    axes.set_title("Accuracy")
    _draw_splits(rows, "accuracy", axes)
    values = [value for split in _splits(rows, "accuracy") for value in _series(rows, f"{split}/accuracy")[1]]
    axes.set_ylim(max(0.0, min(values) - 0.05), min(1.01, max(values) + 0.05))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    best = next((row["best_epoch"] for row in reversed(rows) if row.get("best_epoch")), 0)
    for split in ("validation", "test"):
        accuracy = dict(zip(*_series(rows, f"{split}/accuracy"), strict=True)).get(best)
        if accuracy is None:
            continue
        axes.axvline(best, color=COLOURS[split], linewidth=1, linestyle=":")
        axes.plot(best, accuracy, "o", color=COLOURS[split], markersize=9, markerfacecolor="none")
        found = f"best: epoch {best}, {accuracy:.2%} on {split}"
        axes.set_title(found, loc="right", color=COLOURS[split], fontsize=9.5)


def _draw_learning_rate(rows: Rows, axes: "Axes") -> None:
    axes.set_title("Learning rate")
    axes.plot(*_series(rows, "train/lr", kind="step"), color="#56606b", linewidth=1.3)
    axes.set_ylim(bottom=0)
    _label_epochs(axes)


def _draw_splits(rows: Rows, metric: str, axes: "Axes") -> None:
    """One line per split, a point per epoch."""
    for split in _splits(rows, metric):
        epochs, values = _series(rows, f"{split}/{metric}")
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


def _splits(rows: Rows, metric: str) -> list[str]:
    """The splits that epochs have measured `metric` on."""
    return [split for split in COLOURS if any(_series(rows, f"{split}/{metric}"))]


def _series(rows: Rows, key: str, kind: str = "epoch") -> tuple[list[float], list[float]]:
    """Epochs and finite values of `key` in the rows of `kind`."""
    points = [(row["epoch"], row[key]) for row in rows if row.get("kind") == kind and row.get(key) is not None]
    finite = [(epoch, value) for epoch, value in points if math.isfinite(value)]
    return [epoch for epoch, _ in finite], [value for _, value in finite]


def _cjk_family() -> list[str]:
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
