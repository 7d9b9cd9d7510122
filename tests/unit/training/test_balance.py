"""Parts by speed: the least time of the slowest rank, against all other parts; and costs as they are measured."""

import time
from itertools import product
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distcifar.training import step
from distcifar.training.balance import StepCost, balanced, fitted, ideal_seconds, measured_costs, slowest_seconds
from distcifar.training.step import sample_losses
from tests.support import ONE, small_data, small_recipe

costs_of_ranks = st.lists(st.builds(StepCost, st.floats(0, 10), st.floats(0.01, 1)), min_size=1, max_size=3)


@settings(deadline=None)
@given(costs_of_ranks, st.integers(6, 16))
def test_no_other_parts_are_faster(costs: list[StepCost], batch: int):
    """Of all that give each rank two images."""
    parts = balanced(costs, batch)
    assert sum(parts) == batch
    assert min(parts) >= 2
    others = (other for other in product(range(2, batch + 1), repeat=len(costs)) if sum(other) == batch)
    assert slowest_seconds(costs, parts) == min(slowest_seconds(costs, other) for other in others)


@given(costs_of_ranks, st.integers(1, 500))
def test_the_ideal_is_below_all_parts_and_above_all_but_an_image_of_them(costs: list[StepCost], batch: int):
    ideal = ideal_seconds(costs, batch)
    done = sum(max(0.0, (ideal - cost.fixed) / cost.per_image) for cost in costs)
    assert done == pytest.approx(batch), "in that time the ranks together compute the batch"
    parts = balanced(costs, batch)
    assert slowest_seconds(costs, parts) >= ideal * (1 - 1e-9)
    if min(parts) > 2:  # none was given its two images whatever they cost
        assert slowest_seconds(costs, parts) <= ideal + max(cost.per_image for cost in costs) + 1e-9


@given(st.integers(1, 9), st.integers(0, 1000), st.floats(0, 1), st.floats(0.001, 1))
def test_ranks_of_equal_cost_have_parts_of_equal_size(size: int, batch: int, fixed: float, per_image: float):
    parts = balanced([StepCost(fixed, per_image)] * size, batch)
    assert sum(parts) == batch
    assert max(parts) - min(parts) <= 1


def test_a_card_of_three_times_the_speed_takes_three_times_the_images():
    assert balanced([StepCost(0, 3.0), StepCost(0, 1.0)], 512) == (128, 384)
    assert ideal_seconds([StepCost(0, 3.0), StepCost(0, 1.0)], 512) == pytest.approx(384)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((10, 3.0), (20, 5.0), StepCost(1.0, 0.2)),
        ((20, 5.0), (10, 3.0), StepCost(1.0, 0.2)),
        ((10, 1.0), (20, 4.0), StepCost(0.0, 0.2)),  # twice the images, four times the time: nothing is below 0
        ((10, 4.0), (20, 4.0), StepCost(3.0, 0.05)),  # an idle card: a quarter of the mean all the same
        ((10, 5.0), (20, 4.0), StepCost(3.0, 0.05)),  # noise
        ((20, 9.0), (20, 4.0), StepCost(0.0, 0.2)),
    ],
)
def test_a_cost_is_the_line_through_two_times_where_it_makes_sense(first, second, expected: StepCost):
    found = fitted(first, second)
    assert (found.fixed, found.per_image) == pytest.approx((expected.fixed, expected.per_image))
    assert found.seconds(second[0]) == pytest.approx(second[1])


def test_a_measured_cost_is_that_of_the_images():
    recipe = small_recipe(batch_size=20)

    def slow(logits, labels, *rest):
        time.sleep(0.002 * len(labels))
        return sample_losses(logits, labels, *rest)

    with patch.object(step, "sample_losses", slow):
        (cost,) = measured_costs(recipe, small_data(recipe), "fp32", ONE, microbatch=0)
    assert 0.04 < cost.seconds(20) < 0.08
    assert 0.0015 < cost.per_image < 0.004
