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
from distcifar.training.newton_schulz import orthogonalise_all


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
    """torch's own, fused: one pass over the memory, where unfused Adam takes 2.4 times as long (cnn-day41, CPU)."""
    if config.name in ("adam", "adamw"):
        make = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
        return make(groups, lr=config.lr, betas=config.betas, fused=True)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=True)


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
        """One update; `closure` is not used. The host does not wait for the device."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            grads = [p.grad for p in params]
            buffers = [self._momentum(p) for p in params]
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, grads)
            ahead = torch._foreach_add(grads, buffers, alpha=group["momentum"])
            if group["keep_norm"]:
                norms = torch._foreach_norm(params)
                torch._foreach_mul_(params, [len(p) ** 0.5 / norm for p, norm in zip(params, norms, strict=True)])
            else:
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            updates = orthogonalise_all([step.flatten(1) for step in ahead], steps=group["steps"])
            updates = [update.reshape(p.shape) for p, update in zip(params, updates, strict=True)]
            torch._foreach_add_(params, updates, alpha=-group["lr"])

    def _momentum(self, parameter: Tensor) -> Tensor:
        """The running sum of its gradients."""
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return state["momentum_buffer"]
