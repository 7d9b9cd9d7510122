"""Curves of any length with few points, on which every spike is still to be seen."""

from collections.abc import Iterable
from typing import NamedTuple

MOST_POINTS = 2000


class Point(NamedTuple):
    number: int  # in the order of arrival
    x: float
    y: float


class Bucket(NamedTuple):
    """Points that follow one another: the first, the lowest and the highest of them."""

    first: Point
    low: Point
    high: Point


class Downsampler:
    """Takes the points of a curve as they come and keeps at most `most` (4 or more) of them, in their order.

    Up to that all of them. Then the first, the last, and of each of some hundred equal shares of the points the lowest
    and the highest: drawn as a line, they cover what all points would. Values must be finite.
    """

    def __init__(self, most: int = MOST_POINTS) -> None:
        self._most = most
        self._count, self._width = 0, 1  # points, and how many of them a bucket has
        self._buckets: list[Bucket] = []
        self._last: Point | None = None

    def __len__(self) -> int:
        """How many points there were."""
        return self._count

    def add(self, x: float, y: float) -> None:
        point = self._last = Point(self._count, x, y)
        if self._count % self._width == 0:
            self._buckets.append(Bucket(point, point, point))
            if len(self._buckets) > self._room():
                self._merge()
        else:
            first, low, high = self._buckets[-1]
            if y < low.y:
                self._buckets[-1] = Bucket(first, point, high)
            elif y > high.y:
                self._buckets[-1] = Bucket(first, low, point)
        self._count += 1

    def curve(self) -> tuple[list[float], list[float]]:
        """The kept points, as xs and ys."""
        kept = {point for bucket in self._buckets for point in (bucket.low, bucket.high)}
        if self._last is not None:
            kept |= {self._buckets[0].first, self._last}
        points = sorted(kept)
        return [point.x for point in points], [point.y for point in points]

    def sample(self) -> list[float]:
        """Values at even distances, which stand for all of them: of the lowest and highest there are too many."""
        return [bucket.first.y for bucket in self._buckets]

    def _room(self) -> int:
        """For so many buckets; each is two points once it is more than one."""
        return self._most if self._width == 1 else (self._most - 2) // 2

    def _merge(self) -> None:
        while len(self._buckets) > self._room():
            pairs = [self._buckets[i : i + 2] for i in range(0, len(self._buckets), 2)]
            self._buckets = [
                Bucket(
                    first=pair[0].first,
                    low=min((bucket.low for bucket in pair), key=lambda point: point.y),
                    high=max((bucket.high for bucket in pair), key=lambda point: point.y),
                )
                for pair in pairs
            ]
            self._width *= 2


def downsample(xs: Iterable[float], ys: Iterable[float], most: int = MOST_POINTS) -> tuple[list[float], list[float]]:
    """The curve of `xs` and finite `ys` with at most `most` points (4 or more), as `Downsampler` chooses them."""
    points = Downsampler(most)
    for x, y in zip(xs, ys, strict=True):
        points.add(x, y)
    return points.curve()
