"""Starting without torch's compiler: importing it takes five seconds on two cores, more than torch itself."""

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType, SimpleNamespace
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Adam, Optimizer, adam

MARK = "__dynamo_disable"  # where torch/_compile.py keeps a function's version that the compiler passes over


def leave_compiler_out() -> None:
    """Keeps optimizers and DDP from importing torch._dynamo on their first use. Not for runs that compile.

    torch 2.15 imports the compiler in two wrappers around what these do: one to have a function passed over
    by it (torch/_compile.py), one to break its graph at a step (optim/optimizer.py). Nothing is compiled
    here, so the functions are marked as passed over, and a step runs without gradients and nothing else. Both
    wrappers are private to torch: where a newer one has neither, this changes nothing.
    """
    wrapper = torch._disable_dynamo(_nothing).__code__
    for owner in (Optimizer, adam, DistributedDataParallel):
        for value in vars(owner).values():
            for function in _with_closure(value):
                if function.__code__ is wrapper:
                    setattr(function.__wrapped__, MARK, function.__wrapped__)  # type: ignore[attr-defined]
    for kind in (SGD, Adam):  # AdamW's step is Adam's
        kind.step = torch.no_grad()(inspect.unwrap(kind.step))  # type: ignore[method-assign]


@contextmanager
def building_ddp() -> Iterator[None]:
    """While open, DDP's constructor, which asks the compiler for its mode, finds the default without importing it."""
    if "torch._dynamo" in sys.modules:
        yield
        return
    setting = SimpleNamespace(get_optimize_ddp_mode=lambda: "ddp_optimizer")
    torch._dynamo = SimpleNamespace(utils=setting)  # type: ignore[assignment]
    try:
        yield
    finally:
        del torch._dynamo


def _with_closure(value: Any) -> Iterator[FunctionType]:
    """A function and the functions that it closes over; nothing for other values."""
    if isinstance(value, FunctionType):
        yield value
        yield from (c.cell_contents for c in value.__closure__ or () if isinstance(c.cell_contents, FunctionType))


def _nothing() -> None:
    """Is wrapped to learn what a wrapper looks like."""
