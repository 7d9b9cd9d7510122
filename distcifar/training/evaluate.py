"""Measuring a network on a split: each sample once, in evaluation mode, which is undone afterwards."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distcifar.data.loader import EvalLoader
from distcifar.training.metrics import Evaluation
from distcifar.training.step import autocast
from distcifar.world import World

Interrupted = Callable[[int, World], bool]  # given the number of a batch; a collective
Views = Literal["none", "flip", "shift"]  # Recipe.tta

SURE = 0.7  # lead of the best class's probability over the second's: above it a further look seldom changes the answer
ROUNDED = 64  # second looks come in multiples of it: kept memory of ever other sizes seldom fits again


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
    views: Views,
    interrupted: Interrupted | None = None,
) -> Evaluation | None:
    """Loss, accuracy and confusion of `net` over the split, summed over ranks. A collective.

    The logits are means over `views` (predict). `interrupted` is asked before each batch that all ranks have; where one
    rank says yes, there is no result.
    """
    confusion = torch.zeros(num_classes * num_classes, dtype=torch.float64, device=world.device)
    loss = torch.zeros(1, dtype=torch.float64, device=world.device)
    with evaluating(net):
        for number, batch in enumerate(loader.batches()):
            if interrupted is not None and number < loader.common_batches and interrupted(number, world):
                return None
            with autocast(world.device, precision):
                logits = predict(net, batch.images, views).float()
            loss += F.cross_entropy(logits, batch.labels, reduction="sum")
            cells = batch.labels * num_classes + logits.argmax(1)
            confusion += torch.bincount(cells, minlength=num_classes * num_classes)
    sums = world.sum(torch.cat([confusion, loss])).cpu()
    counts = sums[:-1].round().long().view(num_classes, num_classes)
    count = int(counts.sum())
    if count != loader.num_samples:
        raise RuntimeError(f"evaluation counted {count} samples of a split of {loader.num_samples}")
    return Evaluation(sums[-1].item() / max(count, 1), int(counts.diag().sum()) / max(count, 1), counts)


def predict(net: nn.Module, images: Tensor, views: Views) -> Tensor:
    """Logits [n, classes] of `net` in evaluation mode for images [n, C, S, S], averaged over test-time views.

    none: the image. flip: also its mirror image. shift: as flip, and where these two leave a doubt (SURE), half of the
    mean comes from both images moved by one pixel to the upper left and the lower right, with mirrored borders (K.
    Jordan's airbench94 looks at all images six times). Each image's answer depends on that image alone.
    """
    if views == "none":
        return net(images)
    logits = _with_mirror_image(net, images)
    if views == "flip":
        return logits
    best = logits.float().softmax(1).topk(2, dim=1).values
    unsure = (best[:, 0] - best[:, 1] < SURE).nonzero().squeeze(1)
    if len(unsure):
        again = F.pad(unsure, (0, -len(unsure) % ROUNDED))  # with the first image, whose answers are not used
        side, padded = images.shape[2], F.pad(images[again], (1, 1, 1, 1), mode="reflect")
        moved = (padded[:, :, :side, :side], padded[:, :, 2:, 2:])
        seen = [_with_mirror_image(net, m.contiguous(memory_format=torch.channels_last)) for m in moved]
        logits[unsure] = logits[unsure] / 2 + (seen[0] + seen[1])[: len(unsure)] / 4
    return logits


def _with_mirror_image(net: nn.Module, images: Tensor) -> Tensor:
    return (net(images) + net(images.flip(-1))) / 2
