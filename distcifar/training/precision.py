"""What a recipe's precision "auto" means on this hardware: timed, because a flag says little about speed."""

import copy
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distcifar.training.step import autocast
from distcifar.world import World

PROBE_ROUNDS = 2
PROBE_IMAGES = 64


def resolve_precision(wanted: str, model: nn.Module, images: Tensor, world: World) -> str:
    """`wanted`, or for "auto" bf16 where a step is faster with it than in fp32; the same on every rank.

    A CPU without bf16 units computes bf16 more slowly than fp32; one with them two to four times as fast.
    Costs two times three steps of at most 64 images (`images`: a training batch): a second on two cores.
    """
    if wanted != "auto":
        return wanted
    times = {name: step_seconds(model, images[:PROBE_IMAGES], name) for name in ("fp32", "bf16")}
    faster = torch.tensor(float(times["bf16"] < times["fp32"]), device=world.device)
    return "bf16" if world.broadcast(faster).item() else "fp32"


def step_seconds(model: nn.Module, images: Tensor, precision: str) -> float:
    """The fastest of a few forward and backward passes of a copy of `model`, after one to warm up."""
    probe = copy.deepcopy(model).train()
    labels = torch.zeros(len(images), dtype=torch.long, device=images.device)
    seconds = []
    for _ in range(1 + PROBE_ROUNDS):
        start = time.perf_counter()
        with autocast(images.device, precision):
            logits = probe(images)
        F.cross_entropy(logits.float(), labels).backward()
        if images.device.type == "cuda":
            torch.cuda.synchronize(images.device)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])
