"""Recipe + RunSpec -> a finished run: prepared data, a claimed directory, workers in this process or on Ray."""

import gc
import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distcifar.cluster.facts import collect_facts
from distcifar.cluster.job import Announce, Job, Listener
from distcifar.cluster.run_folder import claim_run, discard_if_unused, only_launch, run_folder
from distcifar.cluster.stopping import StopRequest
from distcifar.config import Recipe, RunSpec
from distcifar.data.prepare import prepare
from distcifar.errors import DistcifarError, ResourceError


@dataclass(frozen=True)
class RunResult:
    """How a launch ended: with a summary, or stopped at a step with a checkpoint to continue from."""

    folder: Path
    summary: dict[str, Any] | None
    stopped_at: int | None


def launch(recipe: Recipe, spec: RunSpec, *, listen: Listener, announce: Announce) -> RunResult:
    """Trains `recipe` as `spec` says; continues the run of that name if it is unfinished.

    listen: given each metrics row as it comes. announce: given sentences for the user. Raises the error family.
    """
    data = prepare(recipe.data, Path(spec.data_root).absolute(), spec.source, announce=announce)
    folder = run_folder(recipe, spec)
    with only_launch(folder):
        claim_run(recipe, spec, folder, collect_facts(spec, data.folder, data.digest))
        StopRequest(folder).clear()
        try:
            result = _fit(Job(recipe, spec, folder, data.folder, data.digest, uuid.uuid4().hex[:8]), listen, announce)
            if "error" in result:
                raise result["error"]
        except DistcifarError:
            discard_if_unused(folder)
            raise
    return RunResult(folder, result.get("summary"), result.get("stopped"))


def _fit(job: Job, listen: Listener, announce: Announce) -> dict[str, Any]:
    """Trains here or on Ray. Torch and Ray are imported only now: seconds, not spent on a mistyped command."""
    if _is_local(job.spec):
        with _collector_at_rest():
            from distcifar.cluster.local import fit_here
        if not job.spec.verbose:
            logging.getLogger("ray").setLevel(logging.ERROR)  # after the import, which sets it
        return fit_here(job, listen, announce)
    from distcifar.cluster.remote import fit_on_ray

    return fit_on_ray(job, listen, announce)


def _is_local(spec: RunSpec) -> bool:
    """Whether one worker of this machine does it all: no cluster is started for it."""
    if spec.address or spec.workers > 1:
        return False
    with _collector_at_rest():
        import torch

    gpus = 0 if spec.device == "cpu" else torch.cuda.device_count()
    if spec.device == "cuda" and not gpus:
        raise ResourceError("This machine has no GPU that torch can use", "--device cuda needs one", "Use --device cpu")
    return spec.workers == 1 or gpus <= 1


@contextmanager
def _collector_at_rest() -> Iterator[None]:
    """Without garbage collection, which costs a tenth of a large import: a million objects are made, none freed."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # they live as long as the program: no collection looks at them again
        gc.enable()
