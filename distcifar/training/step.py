"""One optimizer step: forward, the global batch's mean loss, backward, clip, update (contract 3)."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Variable
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from distcifar.config import Recipe
from distcifar.data.loader import Batch
from distcifar.data.plan import share
from distcifar.data.waiting import Moment, moment
from distcifar.training.state import TrainState
from distcifar.world import World

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class StepResult:
    """What a step leaves on the device: nothing here waits for it."""

    loss: Tensor  # float [], this rank's part of the global mean loss
    grad_norm: Tensor  # float [], of the global gradient before clipping
    losses: Tensor  # float [n], of this rank's samples
    ready: Moment  # when this rank's own gradient was there, and it began to wait for the others'


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The forward pass's arithmetic: fp32, bf16 or fp16 where torch's autocast allows it."""
    return torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")


class Losses(nn.Module):
    """A net with its loss, as one: this is what DDP wraps and the compiler compiles."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(
        self, images: Tensor, labels: Tensor, partner_labels: Tensor | None, own_share: Tensor | None, smoothing: float
    ) -> tuple[Tensor, Tensor]:  # -> losses float [n], hits bool [n]
        logits = self.net(images).float()
        losses = sample_losses(logits, labels, partner_labels, own_share, smoothing)
        return losses, logits.detach().argmax(1) == labels


def sample_losses(
    logits: Tensor, labels: Tensor, partner_labels: Tensor | None, own_share: Tensor | None, smoothing: float
) -> Tensor:
    """Cross-entropy of each sample: float [n]; of a mixture, the mixed loss of both labels."""
    own = F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    if partner_labels is None or own_share is None:
        return own
    partner = F.cross_entropy(logits, partner_labels, reduction="none", label_smoothing=smoothing)
    return own_share * own + (1 - own_share) * partner


def train_step(
    net: nn.Module, state: TrainState, recipe: Recipe, batch: Batch, world: World, *, microbatch: int = 0
) -> StepResult:
    """Updates `state` by one step on this rank's share `batch`; `net`: `Losses` of its model, wrapped for the world.

    The share is computed in optim.accumulate parts, or in more where one would exceed `microbatch` images.

    The loss is the sum over the share divided by the global batch's size and multiplied by the world's, so
    that DDP's mean over ranks is the gradient of the global mean, however unevenly the batch is split.
    """
    for optimizer in state.optimizers:
        optimizer.zero_grad(set_to_none=True)
    n = len(batch.labels)
    # BatchNorm on maps of one pixel needs two images: no part is smaller, and a lone image is shown twice.
    wanted = max(recipe.optim.accumulate, -(-n // microbatch) if microbatch else 1)
    count = max(1, min(wanted, n // 2))
    parts = [share(n, i, count) for i in range(count)]
    total = torch.zeros((), device=world.device)
    each: list[Tensor] = []
    for part in parts:
        with _no_sync(net) if part is not parts[-1] else nullcontext():
            with autocast(world.device, state.progress.precision):
                losses, hits = net(*_inputs(batch, part), recipe.label_smoothing)
            losses, hits = losses[: part.stop - part.start], hits[: part.stop - part.start]
            if not batch.counted:
                losses = losses * 0.0
            loss = losses.sum() * (world.size / batch.total)
            ready = _backward(net, state.scaler.scale(loss), world.device)
        if batch.counted:
            state.tally.add(losses.detach(), hits)
        total += loss.detach() / world.size
        each.append(losses.detach())
    return StepResult(total, _update(state, recipe), torch.cat(each), ready)


def _inputs(batch: Batch, part: slice) -> list[Tensor | None]:
    """What `Losses` takes of the samples of `part`; a batch of one sample has it twice, as BatchNorm needs."""
    found = (batch.images, batch.labels, batch.partner_labels, batch.own_share)
    lone = len(batch.labels) == 1
    return [None if t is None else torch.cat([t, t]) if lone else t[part] for t in found]


def _backward(net: nn.Module, loss: Tensor, device: torch.device) -> Moment:
    """Adds the gradient of `loss` to the parameters'; when this rank's own part of that was done.

    DDP waits for the other ranks in a callback at the end of autograd's work. Callbacks run in the order in which they
    were asked for, and this one is asked for when the backward pass begins. It takes a few microseconds.
    """
    if not isinstance(net, DistributedDataParallel):
        loss.backward()
        return moment(device)
    ready: list[Moment] = []

    def begun(_: Tensor) -> None:
        Variable._execution_engine.queue_callback(lambda: ready.append(moment(device)))

    loss.register_hook(begun)
    loss.backward()
    return ready[0]


def _update(state: TrainState, recipe: Recipe) -> Tensor:
    """Clips and applies the gradient; returns its norm before clipping."""
    for optimizer in state.optimizers:
        state.scaler.unscale_(optimizer)
    parameters = [p for p in state.model.parameters() if p.grad is not None]
    norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
    if recipe.optim.clip_norm:
        clip_grads_with_norm_(parameters, recipe.optim.clip_norm, norm)
    for optimizer in state.optimizers:
        state.scaler.step(optimizer)
    state.scaler.update()
    if state.ema is not None:
        state.ema.update_parameters(state.model)
    return norm


def _no_sync(net: nn.Module) -> AbstractContextManager[object]:
    """Gradients of this part are added up locally; the last part's backward sends them."""
    return net.no_sync() if isinstance(net, DistributedDataParallel) else nullcontext()
