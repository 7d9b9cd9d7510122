"""Optimizers from an OptimConfig: parameter groups with their own rates, Muon for matrices and filters."""

from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from distcifar.config import OptimConfig
from distcifar.errors import ConfigError
from distcifar.models import Net

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # quintic of Jordan et al. 2024: steep at 0, 0.7..1.2 at the end


def build_optimizers(model: Net, config: OptimConfig) -> list[Optimizer]:
    """One optimizer, or two for muon (matrices and filters; everything else by SGD).

    Each parameter group carries `base_lr`; `set_learning_rate` multiplies it.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if config.name != "muon":
        return [_plain(_groups(model, named, config), config)]
    head = {id(p) for p in model.head.parameters()}
    matrices = [p for _, p in named if p.ndim >= 2 and id(p) not in head]
    if not matrices:
        raise ConfigError(
            "optim.name is 'muon' and the model learns no matrix or filter below its head",
            "Muon is for matrices and filters",
            "Use --optim.name sgd",
        )
    rest = [(name, p) for name, p in named if p.ndim < 2 or id(p) in head]
    groups = _muon_groups(model, matrices)
    muon = Muon(groups, lr=config.muon_lr, momentum=config.muon_momentum, weight_decay=config.weight_decay)
    return [muon, _plain(_groups(model, rest, config), config)]


def set_learning_rate(optimizers: Iterable[Optimizer], multiplier: float) -> None:
    """Sets each group's rate to `base_lr` times `multiplier` (schedule times stage)."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * multiplier


def _groups(model: Net, named: list[tuple[str, nn.Parameter]], config: OptimConfig) -> list[dict[str, Any]]:
    """Parameter groups by (rate factor, decay), in the order of their first parameter."""
    head = {id(p) for p in model.head.parameters()}
    norm_biases = {id(m.bias) for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d | nn.GroupNorm)}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for _, parameter in named:
        factor = config.head_lr_factor if id(parameter) in head else 1.0
        if id(parameter) in norm_biases:
            factor *= config.bias_lr_factor
        decay = config.weight_decay if config.decay_all or parameter.ndim > 1 else 0.0
        groups.setdefault((factor, decay), []).append(parameter)
    return [
        {"params": params, "lr": config.lr * factor, "base_lr": config.lr * factor, "weight_decay": decay}
        for (factor, decay), params in groups.items()
    ]


def _muon_groups(model: Net, matrices: list[nn.Parameter]) -> list[dict[str, Any]]:
    """Neighbours that are treated alike, a group each: state goes by position, so the order of `matrices` stays."""
    scale_free = scale_free_weights(model)
    runs = groupby(matrices, key=lambda p: id(p) in scale_free)
    return [{"params": list(params), "keep_norm": keeps} for keeps, params in runs]


def scale_free_weights(model: nn.Module) -> set[int]:
    """Ids of the weights that may be scaled without a change of the output: a BatchNorm divides by their scale.

    It has to be the next module that is registered, or the next after pooling; an activation between them need
    not hand the scale on, and a weight that only reaches its norm over a sum (resnet-d2l's shortcuts) does not.
    """
    found: set[int] = set()
    before: nn.Module | None = None
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and isinstance(before, nn.Conv2d | nn.Linear):
            found.add(id(before.weight))
        if not isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
            before = module
    return found


def _plain(groups: list[dict[str, Any]], config: OptimConfig) -> Optimizer:
    if config.name in ("adam", "adamw"):
        make = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
        return make(groups, lr=config.lr, betas=config.betas)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)


class Muon(Optimizer):
    """Momentum, orthogonalised (Jordan et al. 2024, "Muon"): every singular value of the step is about 1.

    torch.optim.Muon takes matrices only; here a filter [out, in, k, k] is the matrix [out, in*k*k]. For
    matrices the two agree (tests/unit/training/test_optim.py). With `keep_norm` a weight is kept at norm
    sqrt(out), which fixes the relative size of a step (airbench94_muon) and leaves nothing to decay: meant for
    weights before a BatchNorm, where scale means nothing. The others decay as in AdamW, by lr * weight_decay.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        *,
        lr: float,
        momentum: float,
        steps: int = 3,
        keep_norm: bool = True,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "base_lr": lr, "momentum": momentum, "steps": steps}
        super().__init__(params, defaults | {"keep_norm": keep_norm, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update; `closure` is not used."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                buffer = state["momentum_buffer"].mul_(group["momentum"]).add_(p.grad)
                ahead = p.grad.add(buffer, alpha=group["momentum"])
                if group["keep_norm"]:
                    p.mul_(len(p) ** 0.5 / p.norm())
                else:
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                update = orthogonalise(ahead.flatten(1), steps=group["steps"])
                p.add_(update.view_as(ahead.contiguous()), alpha=-group["lr"])


def orthogonalise(matrix: Tensor, *, steps: int, eps: float = 1e-7) -> Tensor:
    """Approximately U V^T of a singular value decomposition, float [rows, columns]: Newton-Schulz in bf16."""
    a, b, c = NEWTON_SCHULZ
    x = matrix.bfloat16()
    x = x / (x.norm() + eps)
    wide = x.shape[0] <= x.shape[1]
    x = x if wide else x.mT
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if wide else x.mT).to(matrix.dtype)
