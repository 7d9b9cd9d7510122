"""Reports come about every half second, however fast the steps are, and never twice as rarely as before."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distcifar.training.reports import FitOptions, Pace, StepReport
from tests.support import ONE, fresh, reports, small_recipe


def reported_at(pace: Pace, seconds: float, steps: int) -> list[int]:
    """The steps after which a run of steady steps of `seconds` reports."""
    found, last = [], 0
    for step in range(1, steps + 1):
        if step - last >= pace.steps:
            pace.steps = pace.wanted(step - last, (step - last) * seconds)
            found.append(step)
            last = step
    return found


def test_the_first_steps_are_reported_at_once_and_then_every_half_second():
    assert reported_at(Pace(0.5), 0.01, 300) == [1, 3, 7, 15, 31, 63, 113, 163, 213, 263]
    assert reported_at(Pace(0.5), 2.0, 5) == [1, 2, 3, 4, 5], "slow steps: each"
    assert reported_at(Pace(), 0.01, 5) == [1, 2, 3, 4, 5]


@given(st.floats(0, 60), st.integers(1, 10**6), st.integers(1, 10**6), st.floats(0, 10**6, allow_nan=False))
def test_a_pace_is_at_least_a_step_and_at_most_doubles(seconds: float, steps: int, done: int, elapsed: float):
    wanted = Pace(seconds, steps).wanted(done, elapsed)
    assert 1 <= wanted <= 2 * steps
    if elapsed > 0 and 1 < wanted < 2 * steps:
        assert wanted == pytest.approx(seconds * done / elapsed, abs=1)


def test_an_epoch_shorter_than_the_pace_reports_at_its_end_only():
    state, data = fresh(small_recipe(epochs=3))
    options = FitOptions(pace=Pace(math.inf, steps=100))
    counts = [len(r.rows) for r in reports(state, data, ONE, options) if isinstance(r, StepReport)]
    assert counts == [3, 3, 3]
