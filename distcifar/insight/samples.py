"""samples.png: test images with what they are and what the model takes them for, its surest mistakes first."""

import io
from bisect import bisect
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unicodedata import east_asian_width

from distcifar.errors import DataError
from distcifar.files import write_atomically
from distcifar.insight.curves import STYLE, cjk_family
from distcifar.tracking.samples import Samples, read_samples

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 8
WIDEST_NAME = 14  # letters below a picture
RIGHT, WRONG = "#56606b", "#c92a2a"


def draw_samples(folder: Path, summary: dict[str, Any]) -> None:
    """samples.png of a finished run, from its samples.npz and its summary. Raises DataError if there is none."""
    samples = read_samples(folder)
    if samples is None:
        raise DataError(
            f"There is no {folder / 'samples.npz'}",
            "A run writes it when it is finished",
            "Draw the samples of a finished run",
        )
    draw_grid(samples, folder / "samples.png", class_names=list(summary["per_class_accuracy"]))


def draw_grid(samples: Samples, path: Path, *, class_names: Sequence[str]) -> None:
    """Draws `samples` into the PNG file `path`."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    count, mistakes = len(samples["labels"]), int((samples["labels"] != samples["predictions"]).sum())
    lines = -(-count // COLUMNS)
    with rc_context(STYLE | {"font.family": ["DejaVu Sans", *cjk_family()]}):
        figure = Figure(figsize=(1.35 * COLUMNS, 1.75 * lines + 0.5), layout="constrained")
        title = f"Test images: {mistakes} mistakes (→ what it is taken for), and {count - mistakes} that are right"
        figure.suptitle(title, x=0.01, ha="left")
        places = figure.subplots(lines, COLUMNS, squeeze=False).flat
        for number, axes in enumerate(places):
            if number < count:
                _draw_image(axes, samples, number, class_names)
            else:
                axes.set_axis_off()
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=130)
    write_atomically(path, png.getvalue())


def _draw_image(axes: "Axes", samples: Samples, number: int, class_names: Sequence[str]) -> None:
    """A picture; below it what it is and what it is taken for."""
    label, prediction = int(samples["labels"][number]), int(samples["predictions"][number])
    colour = RIGHT if label == prediction else WRONG
    image = samples["images"][number]
    grey = image.shape[-1] == 1
    axes.imshow(image[:, :, 0] if grey else image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set(visible=label != prediction, color=colour, linewidth=2.5)
    taken = f"{_short(class_names[prediction])} {samples['confidence'][number]:.0%}"
    words = taken if label == prediction else f"{_short(class_names[label])}\n→ {taken}"
    axes.set_xlabel(words, color=colour, fontsize=7.5)


def _short(name: str) -> str:
    """`name` in one line, cut where it would run into its neighbour; Chinese letters are twice as wide."""
    line = " ".join(name.split())
    ends = list(accumulate(2 if east_asian_width(char) in "WF" else 1 for char in line))
    return line if not ends or ends[-1] <= WIDEST_NAME else line[: bisect(ends, WIDEST_NAME - 1)] + "…"
