"""Where the values of a searched field lie on its axis: numbers and texts for the pictures of a search."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distcifar.config.space import Dimension, Value, value_text
from distcifar.insight.report_charts import nice_ticks

NEAREST = 0.09  # ticks that are closer than this part of the axis would overlap
LONGEST = 16  # letters of a tick's text


@dataclass(frozen=True)
class FieldAxis:
    """A field's axis from 0 to 1: logarithmic where the search is, evenly spaced for a list of values."""

    path: str
    listed: tuple[Value, ...]  # of a list its values
    low: float
    high: float
    log: bool

    @property
    def lines(self) -> tuple[str, str]:
        """The field's name in two lines: `optim.` and `lr`."""
        inner, dot, last = self.path.rpartition(".")
        return inner + dot, last

    def place(self, value: Value) -> float:
        """Where `value` lies, 0 to 1."""
        if self.listed:
            return (self.listed.index(value) + 0.5) / len(self.listed)
        low, high, number = (math.log(x) if self.log else x for x in (self.low, self.high, float(value)))  # type: ignore[arg-type]
        return (number - low) / (high - low) if high > low else 0.5

    def ticks(self, most: int = 5) -> list[tuple[float, str]]:
        """Places and texts: of a list all its values, of an interval about `most`, both ends among them."""
        if self.listed:
            return [(self.place(value), shortened(value_text(value))) for value in self.listed]
        inner = _decades(self.low, self.high, most) if self.log else nice_ticks(self.low, self.high, most=most)
        ends = [self.low, self.high]
        kept = [x for x in inner if all(abs(self.place(x) - self.place(end)) >= NEAREST for end in ends)]
        return [(self.place(x), f"{x:.3g}".replace("e-0", "e-")) for x in dict.fromkeys([self.low, *kept, self.high])]


def field_axis(dimension: Dimension, points: Sequence[Mapping[str, Value]]) -> FieldAxis:
    """The axis of a field: its whole domain, and what pbt has tried beyond it."""
    domain, path = dimension.domain, dimension.path
    tried = [point[path] for point in points if path in point]
    if domain.kind == "choice":
        return FieldAxis(path, tuple(dict.fromkeys((*domain.values, *tried))), 0.0, 1.0, log=False)
    numbers = [float(x) for x in (domain.low, domain.high, *tried)]  # type: ignore[arg-type]
    return FieldAxis(path, (), min(numbers), max(numbers), log=domain.kind == "loguniform")


def _decades(low: float, high: float, most: int) -> list[float]:
    """Powers of ten between `low` and `high`; of many every second, third, ..."""
    exponents = range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)
    return [float(f"1e{exponent}") for exponent in exponents[:: math.ceil(len(exponents) / most) or 1]]


def shortened(text: str) -> str:
    """A text that has room beside an axis."""
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
