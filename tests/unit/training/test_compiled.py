"""Compiling: when it pays, what it compiles, and that the losses of all ways to compute a step stay together."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distcifar.config import DataConfig, ModelConfig, OptimConfig, Recipe
from distcifar.errors import ResourceError
from distcifar.training import compiled
from distcifar.training.compiled import COSTS, Compiled, compile_in_question, compiling_pays, resolve_compile
from distcifar.training.lean import leave_compiler_out
from distcifar.training.reports import FitOptions, Pace
from distcifar.training.step import Losses
from distcifar.world import World
from tests.support import NORM_CNN, ONE, fresh, run_ranks, small_recipe, train

CPU = torch.device("cpu")
IMAGES = torch.zeros(4, 3, 8, 8)
CURVE = small_recipe(  # thirty steps, five of them on a smaller batch
    epochs=5,
    batch_size=32,
    model=ModelConfig(name="cnn", layout=("8", "M", "16", "M"), hidden=()),
    data=DataConfig(validation=24),
    optim=OptimConfig(lr=0.02, momentum=0.9, nesterov=True),
)
CURVE_IMAGES = 5 * 32 + 8


# When it pays


@given(st.floats(0, 10), st.integers(0, 10**6), st.booleans())
def test_compiling_pays_when_what_it_saves_is_more_than_it_costs(seconds: float, steps: int, cached: bool):
    assert not compiling_pays("cpu", seconds, steps, cached=cached), "measured: compiled steps are slower there"
    cost = COSTS["cuda"]
    saved = cost.gain * seconds * steps
    assert compiling_pays("cuda", seconds, steps, cached=cached) == (saved > (cost.warm if cached else cost.cold))
    if compiling_pays("cuda", seconds, steps, cached=False):
        assert compiling_pays("cuda", seconds, steps, cached=True)
        assert compiling_pays("cuda", seconds, steps + 1, cached=False)


@pytest.mark.parametrize(
    ("wanted", "device", "deterministic", "question"),
    [
        ("off", "cuda", False, False),
        ("auto", "cpu", False, False),
        ("auto", "cuda", False, True),
        ("auto", "cuda", True, False),  # a run that goes on might decide otherwise: other bits
        ("on", "cpu", False, True),
        ("on", "cuda", True, True),
    ],
)
def test_nothing_is_timed_where_the_answer_is_known(wanted: str, device: str, deterministic: bool, question: bool):
    assert compile_in_question(wanted, torch.device(device), deterministic=deterministic) == question


def pretend(monkeypatch, *, seconds: float = 1.0, cached: bool = False, works: bool = True, tmp: Path) -> None:
    """A device on which compiling saves a tenth and costs 10 s, or 1 s where it is cached."""

    def require(device: torch.device) -> None:
        if not works:
            raise ResourceError("no C++ compiler", "rule", "remedy")

    marker = tmp / "marker"
    if cached:
        marker.touch()
    monkeypatch.setitem(COSTS, "cpu", compiled.Cost(cold=10.0, warm=1.0, gain=0.1))
    monkeypatch.setattr(compiled, "step_seconds", lambda *_: seconds)
    monkeypatch.setattr(compiled, "require_compiler", require)
    monkeypatch.setattr(compiled, "_marker", lambda *_: marker)


def resolved(wanted: str, steps: int, world: World = ONE) -> tuple[bool, str]:
    return resolve_compile(wanted, torch.nn.Identity(), IMAGES, "fp32", world, steps)


@pytest.mark.parametrize(
    ("steps", "cached", "pays"), [(5, True, False), (50, True, True), (50, False, False), (200, False, True)]
)
def test_auto_weighs_the_steps_that_are_left_and_knows_what_is_cached(monkeypatch, tmp_path, steps, cached, pays):
    pretend(monkeypatch, cached=cached, tmp=tmp_path)
    assert resolved("auto", steps)[0] == pays


def test_without_a_compiler_auto_says_so_and_on_is_a_mistake(monkeypatch, tmp_path):
    pretend(monkeypatch, works=False, tmp=tmp_path)
    assert resolved("auto", 1000) == (False, "not done, though it would pay: no C++ compiler")
    assert resolved("auto", 1) == (False, "")
    with pytest.raises(ResourceError):
        resolved("on", 1)


def test_all_ranks_compile_or_none_does(monkeypatch, tmp_path):
    class Told(World):
        def any(self, flag: bool) -> bool:
            return True  # another rank cannot

    pretend(monkeypatch, tmp=tmp_path)
    assert resolved("auto", 1000, Told(0, 2)) == (False, "")


# What is compiled


def test_only_the_largest_batch_is_compiled_and_smaller_ones_run_eagerly(monkeypatch):
    def fake(function: Callable[..., Any], **words: Any) -> Callable[..., Any]:
        assert words == {"dynamic": False, "mode": None}
        return lambda images, *rest: seen.append(len(images)) or function(images, *rest)

    seen: list[int] = []
    monkeypatch.setattr(torch, "compile", fake)
    monkeypatch.setattr(compiled, "_marker", lambda *_: Path("/dev/null"))
    net = Compiled(Losses(torch.nn.Flatten()), graphs=False)
    for count in (4, 4, 1, 4, 3, 6, 4, 6):
        losses, hits = net(torch.zeros(count, 5), torch.zeros(count, dtype=torch.long), None, None, 0.0)
        assert losses.shape == hits.shape == (count,)
    assert seen == [4, 4, 4, 6, 6]


# Curves


def curve(recipe: Recipe, world: World = ONE, options: FitOptions | None = None) -> list[float]:
    """The loss of each step."""
    state, data = fresh(recipe, world, train=CURVE_IMAGES)
    return [row["train/loss"] for row in train(state, data, world, options) if row["kind"] == "step"]


def recipe_of(precision: str) -> Recipe:
    return Recipe(**{**vars(CURVE), "precision": precision})


def assert_together(found: list[float], expected: list[float], band: float) -> None:
    assert len(found) == len(expected) == 30
    assert expected[-1] < 0.7 * expected[0], "it learns: the curve is no flat line"
    assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) < band


def test_the_curve_in_bf16_stays_with_the_one_in_fp32():
    assert_together(curve(recipe_of("bf16")), curve(recipe_of("fp32")), 0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "band"), [("fp32", 1e-3), ("bf16", 0.05)])
def test_the_compiled_curve_stays_with_the_eager_one_and_small_batches_compile_nothing(precision: str, band: float):
    import torch._dynamo.utils

    leave_compiler_out()  # as in a run
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    found = curve(recipe_of(precision), options=FitOptions(compile=True))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert_together(found, curve(recipe_of(precision)), band)


def both_curves(world: World) -> tuple[list[float], list[float]]:
    return curve(CURVE, world, FitOptions(compile=True)), curve(CURVE, world)


@pytest.mark.slow
def test_ddp_and_the_compiler_go_together(tmp_path: Path):
    for found, eager in run_ranks(both_curves, 2, tmp_path):
        assert_together(found, eager, 1e-3)


# On a GPU


GPU_RECIPE = small_recipe(model=NORM_CNN, epochs=4, optim=OptimConfig(name="muon", lr=0.05, muon_lr=0.02))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_cuda_graphs_give_the_losses_of_eager_steps(precision: str):
    """Without accumulation the compiled step is a CUDA graph; the smaller batch of each epoch runs eagerly."""
    recipe, gpu = recipe_of(precision), World(device=torch.device("cuda", 0))
    eager = curve(recipe, gpu)
    graphs = curve(recipe, gpu, FitOptions(compile=True))
    assert_together(graphs, eager, 0.02 if precision == "fp32" else 0.1)


@pytest.mark.gpu
def test_the_host_does_not_wait_for_the_gpu_within_an_epoch():
    """Steps and the batches for them; reports and evaluations may wait."""

    def watch(stage: str, step: int) -> None:
        waits = stage not in ("data", "step") or step < 3  # the first steps warm up
        torch.cuda.set_sync_debug_mode("default" if waits else "error")

    state, data = fresh(GPU_RECIPE, World(device=torch.device("cuda", 0)))
    options = FitOptions(pace=Pace(1e9, steps=1000), on_stage=watch)
    try:
        rows = train(state, data, World(device=torch.device("cuda", 0)), options)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([row for row in rows if row["kind"] == "step"]) == 12
