"""TrainState: everything that a run must not lose (contract 6), as tensors by name and JSON-ready scalars.

There is no random generator among it: order, augmentation and dropout are functions of (seed, epoch, sample)
or (seed, step, rank), so continuing at a step needs only the step.
"""

import copy
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from distcifar.config import Recipe
from distcifar.models import Net
from distcifar.training.hard_images import HardImages
from distcifar.training.metrics import Tally
from distcifar.training.optim import build_optimizers
from distcifar.training.schedule import Plateau

Weights = dict[str, Tensor]


@dataclass
class Progress:
    """Where the run is and what it has chosen so far. Steps count from 0 over the whole run."""

    step: int = 0  # optimizer steps done
    epoch: int = 0  # epochs done
    epoch_step: int = 0  # steps done of the current epoch
    lr: float = 0.0  # of the last step
    plateau: Plateau = field(default_factory=Plateau)
    best_metric: float | None = None  # of the select_metric
    best_epoch: int = 0  # counted from 1; 0: none yet
    best_step: int = 0
    wait: int = 0  # epochs since the best, for early stopping
    seconds: float = 0.0  # spent training and evaluating, sleep of the machine not counted
    precision: str = "fp32"  # what the recipe's "auto" became on the hardware of the first start
    outcome: str = ""  # "", "finished" or "early stop": no further epoch is due
    rollbacks: int = 0  # times that the run went back after a divergence; each halves the learning rate
    recent_loss: float | None = None  # running mean of the step losses, for spikes
    skipped: int = 0  # steps in a row that fp16's loss scaler has left out


class TrainState:
    """Model, optimizers, averages and progress of one run on one device."""

    def __init__(self, model: Net, recipe: Recipe, data_digest: str, device: torch.device) -> None:
        self.model = model
        self.recipe, self.data_digest = recipe, data_digest
        self.optimizers: list[Optimizer] = build_optimizers(model, recipe.optim)
        self.ema: AveragedModel | None = None
        if recipe.ema_decay:
            average = get_ema_multi_avg_fn(recipe.ema_decay)
            self.ema = AveragedModel(model, multi_avg_fn=average)  # buffers: a copy of the model's
        self.scaler = torch.amp.GradScaler(device.type, enabled=False)
        self.best: Weights | None = None
        self.tally = Tally(device)  # training sums of the current epoch
        self.hard: HardImages | None = None  # what the recipe's hard_share is taken of
        self.progress = Progress()

    @property
    def evaluated(self) -> nn.Module:
        """The network that is measured and chosen: the average where there is one."""
        return self.model if self.ema is None else self.ema.module

    def set_precision(self, precision: str) -> None:
        """Fixes the arithmetic of the run; fp16's small range needs a loss scaler."""
        self.progress.precision = precision
        device = self.tally.sums.device.type
        self.scaler = torch.amp.GradScaler(device, enabled=precision == "fp16")

    def keep_best(self) -> None:
        """Remembers a copy of the evaluated network's weights."""
        self.best = copy.deepcopy(self.evaluated.state_dict())

    def chosen_weights(self) -> Weights:
        """The weights to deploy: the best so far, or the current ones before any epoch is over."""
        return self.best if self.best is not None else self.evaluated.state_dict()

    def start_stage(self) -> None:
        """A new stage of the recipe: the best weights so far, a fresh optimizer, plateau and average."""
        if self.best is not None:
            self.model.load_state_dict(self.best)
        for optimizer in self.optimizers:
            optimizer.state.clear()
        if self.ema is not None:
            self.ema.n_averaged.zero_()  # the next update copies
        self.progress.plateau = Plateau()

    def tensors(self) -> Weights:
        """All tensors by name: model.*, ema.*, optim.PARAMETER.SLOT and tally. `chosen_weights` are apart."""
        found = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        if self.ema is not None:
            found |= {f"ema.{k}": v for k, v in self.ema.state_dict().items()}
        names: dict[Tensor, str] = {p: name for name, p in self.model.named_parameters()}
        for optimizer in self.optimizers:
            for p, slots in optimizer.state.items():
                found |= {f"optim.{names[p]}.{k}": v for k, v in slots.items() if isinstance(v, Tensor)}
        found["tally"] = self.tally.sums
        if self.hard is not None:
            found |= {"hard.losses": self.hard.losses, "hard.before": self.hard.before}
        return found

    def scalars(self) -> dict[str, Any]:
        """Everything else, JSON-ready."""
        return {
            "progress": asdict(self.progress),
            "has_best": self.best is not None,
            "tensors": sorted(self.tensors()),
            "scaler": self.scaler.state_dict(),
            "data_digest": self.data_digest,
        }

    def load(self, tensors: Weights, scalars: dict[str, Any], chosen: Weights) -> None:
        """The inverse of `tensors`, `scalars` and `chosen_weights`. Strict: a missing name raises."""
        if sorted(tensors) != scalars["tensors"]:
            raise KeyError(f"tensors {sorted(set(tensors) ^ set(scalars['tensors']))}")
        self.model.load_state_dict(_under(tensors, "model."))
        averaged = _under(tensors, "ema.")
        if self.ema is not None and averaged:
            self.ema.load_state_dict(averaged)
        elif self.ema is not None:  # a branch that has just switched it on
            self.ema.module.load_state_dict(self.model.state_dict())
        slots: dict[str, Weights] = {}
        for name, value in _under(tensors, "optim.").items():
            parameter, _, slot = name.rpartition(".")
            slots.setdefault(parameter, {})[slot] = value
        names = {p: name for name, p in self.model.named_parameters()}
        for optimizer in self.optimizers:
            ordered = [p for group in optimizer.param_groups for p in group["params"]]  # as torch numbers them
            numbered = {j: _like(p, slots[names[p]]) for j, p in enumerate(ordered) if names[p] in slots}
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": numbered, "param_groups": groups})
        self.tally.sums.copy_(tensors["tally"])
        if self.hard is not None and "hard.losses" in tensors:  # else a branch that has just switched it on
            device = self.tally.sums.device
            self.hard = HardImages(tensors["hard.losses"].to(device), tensors["hard.before"].to(device))
        progress = dict(scalars["progress"])
        progress["plateau"] = Plateau(**progress["plateau"])
        self.progress = Progress(**progress)
        self.set_precision(self.progress.precision)
        if scalars["scaler"]:  # empty unless fp16 was on
            self.scaler.load_state_dict(scalars["scaler"])
        self.best = {k: v.to(self.tally.sums.device) for k, v in chosen.items()} if scalars["has_best"] else None


def _like(parameter: Tensor, slots: Weights) -> Weights:
    """An optimizer's slots in the parameter's memory layout: files have none, and fused optimizers go by memory."""

    def laid_out(value: Tensor) -> Tensor:
        same = value.shape == parameter.shape
        return torch.empty_like(parameter, dtype=value.dtype).copy_(value) if same else value

    return {name: laid_out(value) for name, value in slots.items()}


def _under(tensors: Weights, prefix: str) -> Weights:
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
