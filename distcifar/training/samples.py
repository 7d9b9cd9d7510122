"""Test images to look at, with what the model makes of them: its surest mistakes first."""

import io
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from distcifar.data.loader import EvalLoader
from distcifar.data.plan import Ids
from distcifar.training.evaluate import Views, evaluating, predict
from distcifar.training.step import autocast

LOOKED_AT = 512  # images from the start of the split
SHOWN, MOST_MISTAKES = 32, 16


@dataclass(frozen=True)
class Samples:
    """Images of a split and their predictions."""

    images: NDArray[np.uint8]  # [n, H, W, C], the pixels that are stored
    labels: NDArray[np.int64]  # [n]
    predictions: NDArray[np.int64]  # [n]
    confidence: NDArray[np.float32]  # [n], 0-1: softmax's share for the prediction

    def only(self, places: Ids) -> "Samples":
        """Those at `places`, in that order."""
        return Samples(self.images[places], self.labels[places], self.predictions[places], self.confidence[places])

    def npz(self) -> bytes:
        """As a file of numpy's: plain arrays under the names of the fields."""
        buffer = io.BytesIO()
        np.savez(buffer, **asdict(self))
        return buffer.getvalue()


@torch.no_grad()
def sample_predictions(net: nn.Module, loader: EvalLoader, *, precision: str, views: Views) -> Samples:
    """Of the split's first images the surest mistakes, then the first that are right; at any world size the same ones.

    No collective: each rank looks at the whole split's first images, not at its share.
    """
    ids = np.arange(min(LOOKED_AT, loader.num_samples), dtype=np.int64)
    parts = [ids[i : i + loader.batch_size] for i in range(0, len(ids), loader.batch_size)]
    images, labels, logits = [], [], []
    with evaluating(net):
        for stored, rows, true in loader.store.fetch(parts):
            with autocast(loader.pixels.device, precision):
                answers = predict(net, loader.pixels.evaluate(stored, rows), views)
            images.append(stored[rows].cpu())
            labels.append(true.cpu())
            logits.append(answers.float().cpu())
    scores = torch.cat(logits)
    predictions, confidence = scores.argmax(1), scores.softmax(1).amax(1)
    found = Samples(*(array.numpy() for array in (torch.cat(images), torch.cat(labels), predictions, confidence)))
    return found.only(choose(found.labels, found.predictions, found.confidence))


def choose(labels: NDArray[np.int64], predictions: NDArray[np.int64], confidence: NDArray[np.float32]) -> Ids:
    """Which to show: int64 [n]. The first of those that are equally sure goes first."""
    mistakes = np.flatnonzero(predictions != labels)
    surest = mistakes[np.argsort(-confidence[mistakes], kind="stable")][:MOST_MISTAKES]
    right = np.flatnonzero(predictions == labels)[: SHOWN - len(surest)]
    return np.concatenate([surest, right])
