"""Learning rates, against torch's own schedulers and against the rates that the users' logs print."""

import warnings
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import SGD, Optimizer
from torch.optim import lr_scheduler as theirs

from distcifar.config import ScheduleConfig
from distcifar.training.schedule import Plateau, multiplier

STEPS = 7  # per epoch
EPOCHS = 12
FRESH = Plateau()


def ours(config: ScheduleConfig, *, epochs: int = EPOCHS, steps: int = STEPS) -> list[float]:
    """The multiplier of every step of a training."""
    return [
        multiplier(config, step=step, steps_per_epoch=steps, epochs=epochs, plateau=FRESH)
        for step in range(epochs * steps)
    ]


def torchs(make: Callable[[Optimizer], theirs.LRScheduler], count: int) -> list[float]:
    """The rates of `count` steps of a torch scheduler on a base rate of 1."""
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    scheduler = make(optimizer)
    rates = []
    for _ in range(count):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # stepping OneCycleLR once past its end
            scheduler.step()
    return rates


def per_epoch(rates: list[float]) -> list[float]:
    return [rate for rate in rates for _ in range(STEPS)]


@pytest.mark.parametrize(("step_epochs", "gamma"), [(1, 0.5), (3, 0.1), (5, 0.9), (40, 0.1)])
@pytest.mark.parametrize("every", ["epoch", "step"])
def test_step_is_torchs_steplr(step_epochs: int, gamma: float, every: str):
    config = ScheduleConfig(name="step", step_epochs=step_epochs, gamma=gamma, every=every)
    rates = torchs(lambda o: theirs.StepLR(o, step_epochs, gamma), EPOCHS)
    assert ours(config) == pytest.approx(per_epoch(rates), rel=1e-12)


def test_exponential_is_torchs_exponentiallr():
    rates = torchs(lambda o: theirs.ExponentialLR(o, 0.8), EPOCHS)
    assert ours(ScheduleConfig(name="exponential", gamma=0.8)) == pytest.approx(per_epoch(rates), rel=1e-12)


@pytest.mark.parametrize("final", [0.0, 0.05])
def test_cosine_by_epoch_is_torchs_cosineannealinglr(final: float):
    rates = torchs(lambda o: theirs.CosineAnnealingLR(o, EPOCHS, eta_min=final), EPOCHS)
    assert ours(ScheduleConfig(name="cosine", final=final)) == pytest.approx(per_epoch(rates), abs=1e-12)


def test_cosine_by_step_is_torchs_cosineannealinglr_over_all_steps():
    rates = torchs(lambda o: theirs.CosineAnnealingLR(o, EPOCHS * STEPS), EPOCHS * STEPS)
    assert ours(ScheduleConfig(name="cosine", every="step")) == pytest.approx(rates, abs=1e-12)


def test_linear_by_step_is_torchs_linearlr():
    rates = torchs(lambda o: theirs.LinearLR(o, 1.0, 0.1, EPOCHS * STEPS), EPOCHS * STEPS)
    assert ours(ScheduleConfig(name="linear", every="step", final=0.1)) == pytest.approx(rates, abs=1e-12)


@pytest.mark.parametrize("peak", [0.1, 0.3, 0.75])
def test_onecycle_is_torchs_onecyclelr(peak: float):
    """The same curve. torch puts the peak of a fraction p at step p x total - 1, ours at p x (total - 1): less
    than a step apart, and exactly equal when torch's fraction is given for the same moment."""
    total = EPOCHS * STEPS
    same_moment = (peak * (total - 1) + 1) / total
    rates = torchs(
        lambda o: theirs.OneCycleLR(
            o, max_lr=1.0, total_steps=total, pct_start=same_moment, div_factor=20, final_div_factor=50
        ),
        total,
    )
    config = ScheduleConfig(name="onecycle", every="step", peak=peak, start=1 / 20, final=1 / 1000)
    assert ours(config) == pytest.approx(rates, abs=1e-9)


def test_onecycle_starts_low_peaks_at_one_and_ends_at_final():
    rates = ours(ScheduleConfig(name="onecycle", every="step", peak=0.5, start=0.2, final=0.01), epochs=3, steps=7)
    assert rates[0] == pytest.approx(0.2)
    assert rates[10] == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.01)
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_a_onecycle_of_a_single_step_learns():
    assert ours(ScheduleConfig(name="onecycle", every="step"), epochs=1, steps=1) == [1.0]


# Printed by the users' own scripts (../shared/seeds/003), one number an epoch, in full.
PRINTED = {
    "R13 run 1": (0.08, "cosine", [
        0.08, 0.07804226065180615, 0.0723606797749979, 0.06351141009169893, 0.0523606797749979, 0.04,
        0.027639320225002106, 0.016488589908301078, 0.007639320225002106, 0.0019577393481938587,
    ]),
    "R13 run 3": (0.002, "cosine", [
        0.002, 0.0019510565162951536, 0.0018090169943749473, 0.0015877852522924731, 0.0013090169943749475, 0.001,
        0.0006909830056250527, 0.000412214747707527, 0.00019098300562505268, 4.894348370484647e-05,
    ]),
    "R14 run 2": (0.001, "exponential", [0.001, 0.0008, 0.00064]),
    "R16 run 2": (0.001, "cosine", [
        0.001, 0.0009755282581475768, 0.0009045084971874736, 0.0007938926261462366, 0.0006545084971874737, 0.0005,
        0.00034549150281252633, 0.0002061073738537635, 9.549150281252634e-05, 2.4471741852423235e-05,
    ]),
}  # fmt: skip


@pytest.mark.parametrize("run", PRINTED)
def test_the_rates_in_the_users_logs_are_met(run: str):
    lr, name, printed = PRINTED[run]
    config = ScheduleConfig(name=name, gamma=0.8 if name == "exponential" else 0.1)
    rates = [lr * value for value in ours(config, epochs=10)][::STEPS]
    assert rates[: len(printed)] == pytest.approx(printed, rel=1e-9)


def test_by_epoch_a_rate_moves_only_between_epochs():
    for name in ("cosine", "linear", "exponential", "onecycle"):
        rates = ours(ScheduleConfig(name=name))
        for start in range(0, len(rates), STEPS):
            assert len(set(rates[start : start + STEPS])) == 1, name
        assert len(set(rates)) > EPOCHS / 2, name


def test_warmup_rises_by_equal_steps_to_the_full_rate_and_leaves_the_rest_alone():
    config = ScheduleConfig(name="cosine", every="step", warmup_epochs=2.0)
    rates, plain = ours(config), ours(ScheduleConfig(name="cosine", every="step"))
    ratios = [rate / without for rate, without in zip(rates, plain, strict=True)]
    assert ratios[: 2 * STEPS] == pytest.approx([(step + 1) / (2 * STEPS) for step in range(2 * STEPS)])
    assert rates[2 * STEPS :] == plain[2 * STEPS :]


def test_warmup_may_be_a_part_of_an_epoch():
    rates = ours(ScheduleConfig(warmup_epochs=0.5), steps=8, epochs=1)
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1])


@given(
    name=st.sampled_from(["constant", "step", "exponential", "cosine", "linear", "onecycle"]),
    every=st.sampled_from(["step", "epoch"]),
    epochs=st.integers(1, 9),
    steps=st.integers(1, 9),
    peak=st.floats(0, 1),
    start=st.floats(0, 1),
    final=st.floats(0, 1),
    gamma=st.floats(0.01, 1),
    warmup=st.sampled_from([0.0, 0.3, 1.0, 20.0]),
)
def test_no_schedule_leaves_zero_to_one(name, every, epochs, steps, peak, start, final, gamma, warmup):
    """`lr` is the peak rate: a schedule only ever lowers it, at any corner of its settings."""
    config = ScheduleConfig(
        name=name, every=every, peak=peak, start=start, final=final, gamma=gamma, step_epochs=2,
        warmup_epochs=0.0 if name == "onecycle" else warmup,
    )  # fmt: skip
    assert all(-1e-12 <= value <= 1 + 1e-12 for value in ours(config, epochs=epochs, steps=steps))


LOSSES = st.one_of(
    st.floats(0.0, 3.0),
    st.sampled_from([1.0, 0.9999, 0.99990001, 0.99989999, 0.5]),  # around the threshold of 1e-4
    st.sampled_from([float("nan"), float("inf")]),
)


@given(losses=st.lists(LOSSES, min_size=1, max_size=60), patience=st.integers(0, 4))
@settings(max_examples=200)
def test_plateau_is_torchs_reducelronplateau(losses: list[float], patience: int):
    config = ScheduleConfig(name="plateau", gamma=0.5, patience=patience)
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    # eps: torch also stops lowering a rate once a reduction is below 1e-8; ours has no such floor.
    scheduler = theirs.ReduceLROnPlateau(optimizer, "min", factor=0.5, patience=patience, eps=0.0)
    plateau, mine, torchs_rates = Plateau(), [], []
    for loss in losses:
        plateau = plateau.after_epoch(loss, config)
        mine.append(multiplier(config, step=0, steps_per_epoch=1, epochs=1, plateau=plateau))
        scheduler.step(loss)
        torchs_rates.append(optimizer.param_groups[0]["lr"])
    assert mine == torchs_rates


def test_a_patience_of_two_bears_two_bad_epochs_and_reduces_after_the_third():
    config = ScheduleConfig(name="plateau", gamma=0.5, patience=2)
    plateau, factors = Plateau(), []
    for loss in (1.0, 1.0, 1.1, 1.0, 0.9, 0.95, 0.95, 0.95):
        plateau = plateau.after_epoch(loss, config)
        factors.append(plateau.factor)
    assert factors == [1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25]
