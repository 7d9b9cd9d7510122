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

# Lead of the best class's probability over the second's, above which nobody looks again: three of four CIFAR-10 images
# of a trained speedrun94, whose accuracy is within 0.02 points of what it is with six looks at each.
SURE = 0.6
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

    none: the image. flip: also its mirror image. shift: the image alone, and where that leaves a doubt (SURE) the six
    views of K. Jordan's airbench94: half of the mean from image and mirror image, half from both moved by one pixel to
    the upper left and the lower right, with mirrored borders. Each image's answer depends on that image alone.
    """
    logits = net(images)
    if views == "none":
        return logits
    if views == "flip":
        return (logits + net(images.flip(-1))) / 2
    best = logits.float().softmax(1).topk(2, dim=1).values
    unsure = (best[:, 0] - best[:, 1] < SURE).nonzero().squeeze(1)
    if len(unsure):
        again = F.pad(unsure, (0, -len(unsure) % ROUNDED))  # with the first image, whose answers are not used
        side, padded = images.shape[2], F.pad(images[again], (1, 1, 1, 1), mode="reflect")
        places = [padded[:, :, place : place + side, place : place + side] for place in (1, 0, 2)]
        middle, *moved = [picture.contiguous(memory_format=torch.channels_last) for picture in places]
        further = net(middle.flip(-1)) + sum(net(picture) + net(picture.flip(-1)) for picture in moved) / 2
        logits[unsure] = (logits[unsure] + further[: len(unsure)]) / 4
    return logits
