"""precision "auto" is decided by time, once, for all ranks, and leaves no trace on the model."""

import pytest
import torch

from distcifar.training import precision
from distcifar.training.precision import resolve_precision
from distcifar.world import World
from tests.support import NORM_CNN, ONE, fresh, small_recipe

IMAGES = torch.zeros(300, 3, 8, 8)


class Told(World):
    """A rank that hears from rank 0 that bf16 is faster there (1.0) or not (0.0)."""

    def broadcast(self, values: torch.Tensor) -> torch.Tensor:
        return values.fill_(self.answer)


@pytest.mark.parametrize("wanted", ["fp32", "bf16", "fp16"])
def test_a_named_precision_is_taken_without_timing(monkeypatch, wanted: str):
    monkeypatch.setattr(precision, "step_seconds", None)
    assert resolve_precision(wanted, torch.nn.Identity(), IMAGES, ONE) == wanted


@pytest.mark.parametrize(("fp32", "bf16", "winner"), [(1.0, 0.4, "bf16"), (0.4, 1.0, "fp32"), (1.0, 1.0, "fp32")])
def test_auto_is_bf16_only_where_it_is_faster(monkeypatch, fp32: float, bf16: float, winner: str):
    seen = []

    def seconds(model, images, name):
        seen.append(len(images))
        return {"fp32": fp32, "bf16": bf16}[name]

    monkeypatch.setattr(precision, "step_seconds", seconds)
    assert resolve_precision("auto", torch.nn.Identity(), IMAGES, ONE) == winner
    assert seen == [64, 64], "at most 64 images are timed"


@pytest.mark.parametrize(("answer", "agreed"), [(1.0, "bf16"), (0.0, "fp32")])
def test_all_ranks_take_the_first_ones_choice(monkeypatch, answer: float, agreed: str):
    monkeypatch.setattr(precision, "step_seconds", lambda model, images, name: float((name == "bf16") == (answer > 0)))
    world = Told(1, 2)
    object.__setattr__(world, "answer", answer)
    assert resolve_precision("auto", torch.nn.Identity(), IMAGES, world) == agreed


def test_timing_leaves_the_model_as_it_was():
    state, _ = fresh(small_recipe(model=NORM_CNN))
    state.model.eval()
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    assert resolve_precision("auto", state.model, IMAGES[:8], ONE) in ("fp32", "bf16")
    assert all(torch.equal(value, before[name]) for name, value in state.model.state_dict().items())
    assert not state.model.training
    assert all(p.grad is None for p in state.model.parameters())


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_the_forward_pass_is_computed_in_the_named_arithmetic(name: str, dtype: torch.dtype):
    from distcifar.training.step import autocast

    layer = torch.nn.Linear(4, 4)
    with autocast(torch.device("cpu"), name):
        assert layer(torch.ones(1, 4)).dtype == dtype
    assert layer(torch.ones(1, 4)).dtype == torch.float32
