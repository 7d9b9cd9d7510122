"""One optimizer step: forward, the global batch's mean loss, backward, clip, update (contract 3)."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from distcifar.config import Recipe
from distcifar.data.loader import Batch
from distcifar.data.plan import share
from distcifar.training.state import TrainState
from distcifar.world import World

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class StepResult:
    """What a step leaves on the device: nothing here waits for it."""

    loss: Tensor  # float [], this rank's part of the global mean loss
    grad_norm: Tensor  # float [], of the global gradient before clipping


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The forward pass's arithmetic: fp32, bf16 or fp16 where torch's autocast allows it."""
    return torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")


def sample_losses(logits: Tensor, batch: Batch, part: slice, smoothing: float) -> Tensor:
    """Cross-entropy of each sample of `part`: float [n]; of a mixture, the mixed loss of both labels."""

    def loss(labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels[part], reduction="none", label_smoothing=smoothing)

    if batch.partner_labels is None or batch.own_share is None:
        return loss(batch.labels)
    own = batch.own_share[part]
    return own * loss(batch.labels) + (1 - own) * loss(batch.partner_labels)


def train_step(
    net: nn.Module, state: TrainState, recipe: Recipe, batch: Batch, world: World, *, microbatch: int = 0
) -> StepResult:
    """Updates `state` by one step on this rank's share `batch`; `net` is its model as wrapped for the world.

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
    for part in parts:
        with _no_sync(net) if part is not parts[-1] else nullcontext():
            with autocast(world.device, state.progress.precision):
                images = batch.images[part]
                logits = net(images if n > 1 else images.repeat(2, 1, 1, 1))[: part.stop - part.start]
            logits = logits.float()
            losses = sample_losses(logits, batch, part, recipe.label_smoothing)
            if not batch.counted:
                losses = losses * 0.0
            loss = losses.sum() * (world.size / batch.total)
            state.scaler.scale(loss).backward()
        if batch.counted:
            state.tally.add(losses.detach(), logits.detach().argmax(1) == batch.labels[part])
        total += loss.detach() / world.size
    return StepResult(total, _update(state, recipe))


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
