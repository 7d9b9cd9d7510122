"""torch.compile of forward, loss and backward: for whole batches only, and unasked only where it pays."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distcifar.config import Recipe
from distcifar.data.loader import TrainLoader
from distcifar.errors import ResourceError
from distcifar.training.precision import step_seconds
from distcifar.training.state import Progress
from distcifar.training.step import Losses
from distcifar.world import World


@dataclass(frozen=True)
class Cost:
    """What compiling costs and saves on a kind of device."""

    cold: float  # seconds until the first step has been compiled
    warm: float  # the same where inductor's cache has it
    gain: float  # part of an eager step that is saved


COSTS = {
    # Seconds of processor time on EPYC cores with AVX512-BF16: cnn-day41, quick and resnet9 take 1.08 to 1.30 as long
    # compiled, in bf16 the most. oneDNN's convolutions are the step, and they run at the speed of its matrix products.
    "cpu": Cost(cold=45.0, warm=7.0, gain=-0.15),
    # Not measured. The gain is airbench94's on an A100 (3.83 -> 3.29 s, its paper); the times are a CPU's.
    "cuda": Cost(cold=45.0, warm=7.0, gain=0.14),
}


def compiling_pays(device: str, seconds: float, steps: int, *, cached: bool) -> bool:
    """Whether `steps` steps that take `seconds` each are done sooner with compiling than without."""
    cost = COSTS[device]
    return cost.gain * seconds * steps > (cost.warm if cached else cost.cold)


def steps_left(recipe: Recipe, progress: Progress, loader: TrainLoader) -> int:
    """Optimizer steps from where a run stands to its end."""
    later = range(progress.epoch, recipe.total_epochs)
    steps = sum(loader.steps_over(recipe.images_of(epoch, loader.store.num_samples)) for epoch in later)
    return steps - progress.epoch_step


def compile_in_question(wanted: str, device: torch.device, *, deterministic: bool) -> bool:
    """Whether anything has to be asked or timed to know if "auto", "on" or "off" means compiling.

    "auto" compiles nothing in deterministic mode: a run that goes on may decide otherwise, and its bits would differ.
    """
    return wanted == "on" or (wanted == "auto" and not deterministic and COSTS[device.type].gain > 0)


def resolve_compile(
    wanted: str, model: nn.Module, images: Tensor, precision: str, world: World, steps: int
) -> tuple[bool, str]:
    """Whether "on" or "auto" means to compile for `steps` more steps on batches like `images`; words for the user.

    "auto" times a few steps, and compiles where all ranks find that it pays and works. Raises ResourceError where "on"
    cannot be done. A collective.
    """
    mine, problem = wanted == "on" or _pays_here(model, images, precision, steps), None
    if mine:
        try:
            require_compiler(images.device)
        except ResourceError as error:
            mine, problem = False, error
    if not world.any(not mine):
        return True, f"the first step takes up to {COSTS[images.device.type].cold:.0f} s, in later runs here less"
    if problem is not None and wanted == "on":
        raise problem
    return False, "" if problem is None else f"not done, though it would pay: {problem.found}"


def require_compiler(device: torch.device) -> None:
    """Raises ResourceError where torch.compile does not work."""
    import torch._dynamo.exc  # here: seconds of imports

    try:
        torch.compile(torch.nn.functional.gelu)(torch.ones(8, device=device))
    except torch._dynamo.exc.TorchDynamoException as error:
        raise ResourceError(
            f"torch.compile does not work here: {str(error).strip().splitlines()[0]}",
            "It needs a C++ compiler and openssl, and on a GPU Python's headers (python3-dev)",
            "Install them, or use --compile off",
        ) from error


def _pays_here(model: nn.Module, images: Tensor, precision: str, steps: int) -> bool:
    kind = images.device.type
    seconds = step_seconds(model, images, precision)
    if not compiling_pays(kind, seconds, steps, cached=True):
        return False  # without a look at the cache, which imports the compiler
    return compiling_pays(kind, seconds, steps, cached=_marker(model, images).exists())


class Compiled(nn.Module):
    """`net`, compiled for its largest batches; smaller ones, as the last of an epoch, run eagerly.

    So nothing is compiled for a batch that comes once an epoch. A run that begins with such a batch compiles twice; so
    it does for another image size, and when layers stop learning. `graphs`: as CUDA graphs, whose results the next call
    overwrites: gradients of several parts cannot be added up.
    """

    def __init__(self, net: Losses, *, graphs: bool) -> None:
        super().__init__()
        self.net, self._whole = net, 0
        self._compiled = torch.compile(net.forward, dynamic=False, mode="reduce-overhead" if graphs else None)

    def forward(self, images: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        if len(images) < self._whole:
            return self.net(images, *rest)
        found = self._compiled(images, *rest)
        if len(images) > self._whole:
            self._whole = len(images)
            _marker(self.net.net, images).touch()
        return found


def _marker(model: nn.Module, images: Tensor) -> Path:
    """A file beside inductor's compiled artefacts, and gone with them, that says that this model's are there."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir  # here: a second of imports

    device = torch.cuda.get_device_name(images.device) if images.is_cuda else "cpu"
    words = f"{torch.__version__} {device} {tuple(images.shape)} {model!r}"
    return Path(cache_dir()) / f"distcifar-{hashlib.sha256(words.encode()).hexdigest()[:32]}"
