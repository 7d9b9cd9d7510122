"""What W&B is given of a run directory: pure functions of the journal's rows, without W&B.

One W&B row is one optimizer step, and its number is W&B's `_step`. The row of an epoch goes into the row of its last
step, so whoever ships can begin at any step, again and again, and the curve is the same.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

Row = Mapping[str, Any]
Shipped = tuple[int, dict[str, Any]]  # W&B's step, and the values

EVERY_STEP = 100_000  # up to this step each is shipped, then each tenth: W&B's pages draw no more points than that
# Names and patterns of metrics: what they are drawn over, and which of their values stands in tables.
METRICS: tuple[tuple[str, str, str], ...] = (
    ("train/loss", "step", "min"),
    ("train/lr", "step", "last"),
    ("train/grad_norm", "step", "max"),
    ("perf/images_per_s", "step", "mean"),
    ("perf/data_wait", "step", "mean"),
    ("perf/memory_bytes", "step", "max"),
    ("hardware/*", "step", ""),
    ("epoch/train/loss", "epoch", "min"),
    ("epoch/train/accuracy", "epoch", "max"),
    ("validation/loss", "epoch", "min"),
    ("validation/accuracy", "epoch", "max"),
    ("test/loss", "epoch", "min"),
    ("test/accuracy", "epoch", "max"),
    ("best_epoch", "epoch", "last"),
    ("seconds", "epoch", "last"),
)


class RowMerger:
    """Turns the journal's rows, given in order, into W&B's.

    The last step of an epoch, whose `epoch` is a whole number, waits for the epoch's row. hardware: asked at each step
    for measurements that go out with its row.
    """

    def __init__(self, hardware: Callable[[int], Mapping[str, Any]] = lambda step: {}) -> None:
        self._last_step: dict[str, Any] | None = None
        self._hardware = hardware

    def add(self, row: Row) -> Iterator[Shipped]:
        """The W&B rows that are complete now."""
        if row["kind"] == "epoch":
            values = (self._last_step or {"step": row["step"]}) | epoch_values(row)
            self._last_step = None
            yield self._shipped(values)
            return
        values = step_values(row)
        if float(row["epoch"]).is_integer():
            self._last_step = values
        elif is_shipped(row["step"]):
            yield self._shipped(values)

    def _shipped(self, values: dict[str, Any]) -> Shipped:
        step: int = values["step"]
        return step, {**values, **self._hardware(step)}


def is_shipped(step: int) -> bool:
    """Whether the row of `step` is, apart from the last of each epoch, which always is."""
    return step <= EVERY_STEP or step % 10 == 0


def shipped_rows(rows: Iterable[Row]) -> Iterator[Shipped]:
    """All W&B rows of a run whose journal has `rows`."""
    merger = RowMerger()
    for row in rows:
        yield from merger.add(row)


def step_values(row: Row) -> dict[str, Any]:
    """A row's finite numbers."""
    return {name: value for name, value in row.items() if name != "kind" and _is_number(value)}


def epoch_values(row: Row) -> dict[str, Any]:
    """An epoch's row; where its names are those of a step's row, `epoch/` goes before them."""
    values = step_values(row)
    values.pop("train/lr", None)  # that of the last step, which is in the row
    return {f"epoch/{name}" if name.startswith("train/") else name: value for name, value in values.items()}


def _is_number(value: Any) -> bool:
    """W&B's curves are of finite numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def run_config(recipe: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """W&B's config: the recipe's fields, and under `run` the specification, versions, hardware, data, commit."""
    return {**recipe, "run": dict(facts)}


def summary_values(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What of summary.json stands in W&B's summary as plain values."""
    plain = {name: value for name, value in summary.items() if isinstance(value, str) or _is_number(value)}
    renamed = {"test/accuracy": plain.pop("test_accuracy", None), "test/loss": plain.pop("test_loss", None)}
    per_class = {f"test/per_class/{name}": value for name, value in summary["per_class_accuracy"].items()}
    return {name: value for name, value in {**plain, **renamed, **per_class}.items() if value is not None}
