"""What a report says about classes: how well each is recognised, what is taken for what, and pictures of it."""

import base64
import io
import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distcifar.insight.report_run import RunRecord
from distcifar.tracking.samples import ARRAYS, Samples, read_samples

MOST_CELLS = 25  # classes whose confusion can still be read as a table
MOST_CLASSES = 25  # that are shown at once; the rest waits in a fold
MOST_PAIRS = 20
SIDE = 96  # pixels of a sample; larger ones would make the page heavy


@dataclass(frozen=True)
class ClassRow:
    """A class of the test split. accuracy is None where it has no image."""

    name: str
    images: int
    accuracy: float | None
    mistaken_for: str
    mistakes: int


@dataclass(frozen=True)
class Pair:
    true: str
    predicted: str
    count: int
    share: float  # of the true class's images


@dataclass(frozen=True)
class Cell:
    count: int
    shade: float  # 0-1, of the true class's images; mistakes are few, so they darken sooner
    right: bool
    text: str  # what is read when it is pointed at


@dataclass(frozen=True)
class Sample:
    png: str  # base64
    true: str
    predicted: str
    confidence: float
    right: bool


def class_rows(run: RunRecord) -> list[ClassRow]:
    """All classes, the hardest first; those without an image last."""
    matrix, names = _confusion(run), run.class_names
    found = []
    for place, (name, accuracy) in enumerate((run.summary.get("per_class_accuracy") or {}).items()):
        images, mistaken_for, mistakes = 0, "", 0
        if matrix is not None:
            images = int(matrix[place].sum())
            wrong = np.where(np.arange(len(names)) == place, 0, matrix[place])
            mistakes = int(wrong.max(initial=0))
            mistaken_for = names[int(wrong.argmax())] if mistakes else ""
        found.append(ClassRow(name, images, accuracy, mistaken_for, mistakes))
    return sorted(found, key=lambda row: 2.0 if row.accuracy is None else row.accuracy)


def confused_pairs(run: RunRecord, most: int = MOST_PAIRS) -> list[Pair]:
    """What is most often taken for something else."""
    matrix, names = _confusion(run), run.class_names
    if matrix is None:
        return []
    wrong = matrix * ~np.eye(len(matrix), dtype=bool)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    found = []
    for true, predicted in zip(*(axis.tolist() for axis in np.unravel_index(order, wrong.shape)), strict=True):
        count, images = int(wrong[true, predicted]), int(matrix[true].sum())
        if count:
            found.append(Pair(names[true], names[predicted], count, count / images))
    return found


def confusion_cells(run: RunRecord) -> list[tuple[str, list[Cell]]]:
    """The confusion matrix by true class; empty where there is none, or where it has too many classes to be read."""
    matrix, names = _confusion(run), run.class_names
    if matrix is None or len(names) > MOST_CELLS:
        return []
    found = []
    for place, name in enumerate(names):
        images = max(1, int(matrix[place].sum()))
        cells = []
        for other, count in enumerate(matrix[place].tolist()):
            share, text = count / images, f"{name} taken for {names[other]}: {count} of {images}"
            cells.append(Cell(count, share if place == other else math.sqrt(share), place == other, text))
        found.append((name, cells))
    return found


def samples(run: RunRecord, most: int) -> list[Sample]:
    """Test images of samples.npz with their predictions, as PNG; none where there is no such file."""
    try:
        arrays = read_samples(run.folder)
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
        return []  # damaged: the rest of the report is worth reading without
    return _drawn_samples(arrays, run.class_names, most) if arrays is not None else []


def _drawn_samples(arrays: Samples, names: Sequence[str], most: int) -> list[Sample]:
    from PIL import Image

    found = []
    for pixels, label, prediction, confidence in zip(*(arrays[name][:most] for name in ARRAYS), strict=True):
        image = Image.fromarray(pixels[:, :, 0] if pixels.shape[-1] == 1 else pixels)
        image.thumbnail((SIDE, SIDE))
        png = io.BytesIO()
        image.save(png, format="PNG", optimize=True)
        true, predicted = (_name(names, int(number)) for number in (label, prediction))
        right = int(label) == int(prediction)
        found.append(Sample(base64.b64encode(png.getvalue()).decode(), true, predicted, float(confidence), right))
    return found


def _name(names: Sequence[str], label: int) -> str:
    return names[label] if 0 <= label < len(names) else f"class {label}"


def _confusion(run: RunRecord) -> np.ndarray | None:
    """int64 [true classes, predictions], or None where it was not measured."""
    rows = run.summary.get("confusion")
    matrix = np.asarray(rows, dtype=np.int64) if rows else np.zeros((0, 0), np.int64)
    return matrix if matrix.shape == (len(run.class_names),) * 2 and len(matrix) else None
