"""Measuring a network on a split: each sample once, in evaluation mode, which is undone afterwards."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distcifar.data.loader import EvalLoader
from distcifar.training.metrics import Evaluation
from distcifar.training.step import autocast
from distcifar.world import World

Interrupted = Callable[[int, World], bool]  # given the number of a batch; a collective


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """`net` in evaluation mode; each module's own mode is restored, also after an error."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@torch.no_grad()
def evaluate(
    net: nn.Module,
    loader: EvalLoader,
    world: World,
    *,
    num_classes: int,
    precision: str,
    flip: bool,
    interrupted: Interrupted | None = None,
) -> Evaluation | None:
    """Loss, accuracy and confusion of `net` over the split, summed over ranks. A collective.

    With `flip` the logits of each image and its mirror image are averaged. `interrupted` is asked before each batch
    that all ranks have; where one rank says yes, there is no result.
    """
    confusion = torch.zeros(num_classes * num_classes, dtype=torch.float64, device=world.device)
    loss = torch.zeros(1, dtype=torch.float64, device=world.device)
    with evaluating(net):
        for number, batch in enumerate(loader.batches()):
            if interrupted is not None and number < loader.common_batches and interrupted(number, world):
                return None
            with autocast(world.device, precision):
                logits = predict(net, batch.images, flip=flip).float()
            loss += F.cross_entropy(logits, batch.labels, reduction="sum")
            cells = batch.labels * num_classes + logits.argmax(1)
            confusion += torch.bincount(cells, minlength=num_classes * num_classes)
    sums = world.sum(torch.cat([confusion, loss])).cpu()
    counts = sums[:-1].round().long().view(num_classes, num_classes)
    count = int(counts.sum())
    if count != loader.num_samples:
        raise RuntimeError(f"evaluation counted {count} samples of a split of {loader.num_samples}")
    return Evaluation(sums[-1].item() / max(count, 1), int(counts.diag().sum()) / max(count, 1), counts)


def predict(net: nn.Module, images: Tensor, *, flip: bool) -> Tensor:
    """Logits [batch, classes] of `net`; with `flip` the mean over each image and its mirror image."""
    return (net(images) + net(images.flip(-1))) / 2 if flip else net(images)
