"""The model of a step's time: what a fit finds again, and what it may never say."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from distcifar.cluster.time_model import Observation, StepTime, fit_step_time, least_squares

MEGABYTE = 1e6
parameters = st.builds(
    StepTime,
    per_step=st.floats(1e-5, 1e-2),
    per_image=st.floats(1e-6, 1e-3),
    per_byte=st.floats(1e-12, 1e-8),
    per_hop=st.floats(1e-6, 1e-3),
)


def observed(truth: StepTime, ranks: tuple[int, ...]) -> list[Observation]:
    """Steps with different shares, and all-reduces alone of different sizes, as a scaling benchmark makes them."""
    steps = [(n, images, 20 * MEGABYTE, 1) for n, images in product(ranks, (64, 128, 512))]
    reduces = [(n, 0, size, 0) for n, size in product(ranks, (1e4, MEGABYTE, 80 * MEGABYTE)) if n > 1]
    found = []
    for n, images, size, count in [*steps, *reduces]:
        seconds = truth.seconds(ranks=n, images=images, gradient_bytes=size) - (0 if count else truth.per_step)
        found.append(Observation(seconds, n, images, size, count))
    return found


def test_the_formula_written_out():
    model = StepTime(per_step=0.001, per_image=1e-5, per_byte=1e-9, per_hop=1e-4)
    ring = 2 * 3 / 4 * 8e6 * 1e-9 + 6 * 1e-4
    assert model.seconds(ranks=4, images=100, gradient_bytes=8e6) == pytest.approx(0.001 + 0.001 + ring)
    assert model.seconds(ranks=1, images=100, gradient_bytes=8e6) == pytest.approx(0.002)


@given(parameters)
def test_a_fit_finds_the_parameters_again_from_two_ranks_and_predicts_sixty_four(truth: StepTime):
    found = fit_step_time(observed(truth, (1, 2)))
    for name in ("per_step", "per_image", "per_byte", "per_hop"):
        assert getattr(found, name) == pytest.approx(getattr(truth, name), rel=1e-4)
    there = {"ranks": 64, "images": 32, "gradient_bytes": 20 * MEGABYTE}
    assert found.seconds(**there) == pytest.approx(truth.seconds(**there), rel=1e-4)


@given(parameters, st.lists(st.floats(0.9, 1.1), min_size=10, max_size=10))
def test_noise_of_a_tenth_moves_predictions_of_what_was_measured_by_no_more(truth: StepTime, noise: list[float]):
    exact = observed(truth, (1, 2))
    noisy = [
        Observation(e.seconds * f, e.ranks, e.images, e.gradient_bytes, e.steps)
        for e, f in zip(exact, noise * 2, strict=False)
    ]
    found = fit_step_time(noisy)
    errors = [
        np.dot(e.terms(), (found.per_step, found.per_image, found.per_byte, found.per_hop)) / e.seconds - 1
        for e in exact
    ]
    assert math.sqrt(np.mean(np.square(errors))) <= 0.2


@given(parameters)
def test_one_rank_tells_nothing_of_the_network(truth: StepTime):
    found = fit_step_time(observed(truth, (1,)))
    assert (found.per_byte, found.per_hop) == (0.0, 0.0)
    assert found.per_image == pytest.approx(truth.per_image, rel=1e-4)


small = st.integers(-5, 5).map(float)


@given(arrays(float, (6, 3), elements=small), arrays(float, 6, elements=small))
def test_the_solution_is_not_negative_and_no_step_within_the_bounds_improves_it(matrix: np.ndarray, target: np.ndarray):
    x = np.array(least_squares(matrix, target))
    assert (x >= 0).all()
    gradient = matrix.T @ (matrix @ x - target)
    assert (gradient >= -1e-4).all()  # growing an unknown does not help ...
    assert abs(gradient[x > 1e-9]).max(initial=0.0) <= 1e-4  # ... and neither does shrinking one
