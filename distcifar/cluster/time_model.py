"""How long a training step takes on so many workers: compute + all-reduce + latency, fitted to what was measured.

    seconds = per_step + per_image * images of a rank + per_byte * 2 (n - 1) / n * gradient bytes + per_hop * 2 (n - 1)

The last two terms are a ring all-reduce among n ranks (Patarasuk, Yuan 2009): each rank sends 2 (n - 1) messages of an
n-th of the gradient. Communication is not taken to overlap with the backward pass: DDP's does, so that real steps are
at least as fast. It is here, and not beside the benchmark that measures it, for a launch that estimates its time.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Observation:
    """One measured time on `ranks` ranks: a step with `images` of them on each, or (steps 0) an all-reduce alone."""

    seconds: float
    ranks: int
    images: float  # of one rank
    gradient_bytes: float  # all-reduced
    steps: int = 1

    def terms(self) -> tuple[float, float, float, float]:
        """What each of StepTime's parameters is multiplied by."""
        hops = 2 * (self.ranks - 1)
        return float(self.steps), float(self.images), hops / self.ranks * self.gradient_bytes, float(hops)


@dataclass(frozen=True)
class StepTime:
    """The four parameters in seconds; none is negative."""

    per_step: float
    per_image: float
    per_byte: float
    per_hop: float

    def seconds(self, *, ranks: int, images: float, gradient_bytes: float) -> float:
        """The predicted time of a step with `images` on each of `ranks` ranks."""
        terms = Observation(0.0, ranks, images, gradient_bytes).terms()
        return float(np.dot(terms, (self.per_step, self.per_image, self.per_byte, self.per_hop)))


def fit_step_time(observations: Iterable[Observation]) -> StepTime:
    """The parameters >= 0 with the least sum of squared relative errors.

    A parameter that no observation tells anything about is 0 (the all-reduce's, where all were made on one rank).
    """
    found = list(observations)
    seconds = np.array([each.seconds for each in found])
    return StepTime(*least_squares(np.array([each.terms() for each in found]) / seconds[:, None], np.ones(len(found))))


def least_squares(matrix: NDArray[np.float64], target: NDArray[np.float64]) -> list[float]:
    """x >= 0 with the least |matrix @ x - target|: of a few unknowns, so that every set of them is tried.

    The best solution without bounds over the right set of columns is the best one with them.
    """
    size = matrix.shape[1]
    scale = np.where(matrix.any(axis=0), np.linalg.norm(matrix, axis=0), 1.0)  # units differ by twelve powers of ten
    best, least = np.zeros(size), float(np.linalg.norm(target))
    for count in range(1, size + 1):
        for columns in combinations(range(size), count):
            part = matrix[:, columns] / scale[list(columns)]
            solution = np.linalg.lstsq(part, target, rcond=None)[0]
            error = float(np.linalg.norm(part @ solution - target))
            if (solution >= 0).all() and error < least * (1 - 1e-9):  # more unknowns only where they explain more
                best, least = np.zeros(size), error
                best[list(columns)] = solution / scale[list(columns)]
    return best.tolist()
