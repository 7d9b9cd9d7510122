"""When training is no longer sound; and what it costs to say so wrongly."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distcifar.config import OptimConfig, Recipe
from distcifar.errors import ConfigError, DivergenceError
from distcifar.training.divergence import MEMORY, SKIPPED_STEPS, Done, require_sound
from distcifar.training.state import TrainState
from tests.support import fresh, small_recipe, train

FINITE = st.floats(0.01, 100.0)
STATE, _ = fresh(small_recipe())  # a template: only its progress is touched


def a_state(precision: str = "fp32") -> TrainState:
    state, _ = fresh(small_recipe())
    state.set_precision(precision)
    return state


def judged(
    recipe: Recipe, state: TrainState, losses: list[float], norms: list[float] | None = None, *, at_once: bool = True
) -> None:
    """All `losses` in one report, or each in its own."""
    norms = norms or [1.0] * len(losses)
    done = [Done(i, i / 3, 0.1, 16, None) for i in range(1, len(losses) + 1)]  # type: ignore[arg-type]
    size = max(1, len(losses)) if at_once else 1
    for i in range(0, len(losses), size):
        require_sound(recipe, state, done[i : i + size], losses[i : i + size], norms[i : i + size])


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)])
def test_what_is_no_number_is_divergence_at_its_own_step(loss: float, norm: float):
    with pytest.raises(DivergenceError, match=r"At step 2 \(epoch 1\) the loss is .* the learning rate was 0\.1"):
        judged(small_recipe(), a_state(), [1.0, loss, 1.0], [1.0, norm, 1.0])


@given(st.lists(FINITE, min_size=1), st.booleans())
def test_without_a_spike_factor_no_finite_loss_is_divergence(losses: list[float], at_once: bool):
    judged(small_recipe(), STATE, losses, at_once=at_once)


@given(st.lists(FINITE, min_size=1), st.floats(1.5, 5), st.booleans())
def test_a_jump_is_a_loss_of_so_many_times_the_running_mean(losses: list[float], factor: float, at_once: bool):
    STATE.progress.recent_loss = None
    mean, jump = losses[0], None
    for number, loss in enumerate(losses, 1):
        if loss > factor * mean:
            jump = number
            break
        mean = MEMORY * mean + (1 - MEMORY) * loss
    recipe = small_recipe(spike_factor=factor)
    if jump is None:
        judged(recipe, STATE, losses, at_once=at_once)
        assert STATE.progress.recent_loss == mean
    else:
        with pytest.raises(DivergenceError, match=rf"At step {jump} .*jumped"):
            judged(recipe, STATE, losses, at_once=at_once)


def test_a_factor_that_every_noisy_loss_exceeds_is_refused():
    with pytest.raises(ConfigError, match=r"spike_factor is 1\.2"):
        small_recipe(spike_factor=1.2)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, SKIPPED_STEPS + 2)), max_size=4), st.booleans())
def test_fp16_is_given_some_steps_to_find_its_scale_and_not_for_ever(runs: list[tuple[bool, int]], at_once: bool):
    infinite = [flag for flag, count in runs for _ in range(count)]
    state = STATE
    state.set_precision("fp16")
    state.progress.skipped = 0
    norms = [math.inf if flag else 1.0 for flag in infinite]
    first = "".join("x" if flag else "." for flag in infinite).find("x" * SKIPPED_STEPS)
    try:
        judged(small_recipe(), state, [1.0] * len(norms), norms, at_once=at_once)
        assert first < 0
    except DivergenceError as error:
        assert first >= 0
        assert f"At step {first + SKIPPED_STEPS} " in error.found
    finally:
        state.set_precision("fp32")


def test_with_fp16_a_loss_that_is_no_number_is_divergence_at_once():
    with pytest.raises(DivergenceError, match="At step 1 "):
        judged(small_recipe(), a_state("fp16"), [math.nan], [math.inf])


def test_an_fp16_run_whose_gradient_is_infinite_for_ever_ends():
    """Skipping each step for ever would look like training."""
    state, data = fresh(small_recipe(precision="fp16", epochs=30))
    state.model.head.weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(DivergenceError, match="at any scale"):
        train(state, data)
    assert state.progress.step == SKIPPED_STEPS


def test_a_training_that_jumps_is_told_at_the_step_of_the_jump():
    state, data = fresh(small_recipe(spike_factor=3.0, epochs=4, optim=OptimConfig(lr=0.01)))
    state.model.head.register_forward_hook(
        lambda module, inputs, out: -50 * out if state.progress.step == 7 and module.training else None
    )
    with pytest.raises(DivergenceError, match=r"At step 8 .*jumped"):
        train(state, data)
