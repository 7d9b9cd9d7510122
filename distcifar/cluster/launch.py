"""Recipe + RunSpec -> a finished run: prepared data, a claimed directory, workers in this process or on Ray."""

import gc
import logging
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distcifar.cluster.estimates.figures import foretold
from distcifar.cluster.facts import collect_facts
from distcifar.cluster.job import Announce, Job, Listener
from distcifar.cluster.run_folder import claim_run, discard_if_unused, only_launch, run_folder
from distcifar.cluster.stopping import StopRequest
from distcifar.cluster.stored.storage import RunCopy, run_copy
from distcifar.config import Recipe, RunSpec
from distcifar.data.shared import shared_data
from distcifar.errors import DistcifarError, ResourceError
from distcifar.store import Store
from distcifar.tracking.identity import read_identity
from distcifar.tracking.journal import note_event, read_events
from distcifar.tracking.shipping.ship import Shipping
from distcifar.tracking.shipping.tracker import Tracker
from distcifar.tracking.startup import Marks, in_a_line, read_startup

Fit = Callable[[Job, Listener, Announce], dict[str, Any]]

SHIPPING_SECONDS = 90.0  # at most, that the program waits for W&B when the training is over


@dataclass(frozen=True)
class RunResult:
    """How a launch ended: with a summary, or stopped at a step with a checkpoint to continue from."""

    folder: Path
    summary: dict[str, Any] | None
    stopped_at: int | None
    url: str = ""  # where the run is, if `folder` is a copy of it

    @property
    def place(self) -> str:
        """Where the run is, in words."""
        return Store(self.url).place or str(self.folder)

    def keep(self, *names: str) -> None:
        """Stores files that were made in `folder` since. Raises StorageError."""
        for name in names if self.url else ():
            Store(self.url).write(name, self.folder / name)


def launch(
    recipe: Recipe,
    spec: RunSpec,
    *,
    listen: Listener,
    announce: Announce,
    environment: Mapping[str, str] | None = None,
) -> RunResult:
    """Trains `recipe` as `spec` says; continues the run of that name if it is unfinished.

    listen: given each metrics row as it comes. announce: given sentences for the user. environment: of the processes
    that speak with W&B, and of no other: the account's key may be in it. Raises the error family.
    """
    environment = environment or {}
    startup = Marks.of_this_process().ended("imports")
    folder = run_folder(recipe, spec)
    fit = _in_thread(lambda: _fitting(spec))
    data = shared_data(recipe.data, spec.data_root, spec.data_copies, spec.source, announce=announce)
    startup = startup.ended("data check")
    launched = uuid.uuid4().hex[:8]
    with only_launch(folder), run_copy(spec, folder, launched, announce) as copy:
        facts = collect_facts(spec, data.folder, data.digest) | foretold(recipe, spec)
        claim_run(recipe, spec, folder, facts, environment)
        StopRequest(folder).clear()
        copy.claimed()
        _tell_other_place(spec, folder, announce)
        startup = startup.ended("run folder")
        job = Job(recipe, spec, folder, data.folder, data.digest, launched, startup)
        try:
            with _tracked(job, environment, _telling_start(job, listen, announce), announce) as listen_too:
                result = _told(job, copy, fit, listen_too, announce)
        finally:
            gc.unfreeze()  # else the collection at the program's end passes modules over, and triton's says it leaks
    return RunResult(folder, result.get("summary"), result.get("stopped"), copy.url)


def _tell_other_place(spec: RunSpec, folder: Path, announce: Announce) -> None:
    """A run stays the W&B run that it was begun as, also where the command now says something else."""
    identity = read_identity(folder)
    asked = {"project": spec.project, "entity": spec.entity, "group": spec.group}
    default = RunSpec()
    for name, value in asked.items():
        if identity is not None and value not in (getattr(identity, name), getattr(default, name)):
            announce(f"W&B: the run stays in {name} {getattr(identity, name)!r}, where it was begun, not {value!r}")


def _told(job: Job, copy: RunCopy, fit: "Future[Fit]", listen: Listener, announce: Announce) -> dict[str, Any]:
    """The workers' answer. An end before the training's own stands in the run's events, whatever it is."""
    try:
        train = fit.result()
        apart = not _is_local(job.spec)
        job = replace(job, startup=job.startup.ended("libraries"), store=copy.url if apart else "")
        with copy.training(listen, apart=apart) as listener:
            result = train(job, listener, announce)
        if "error" in result:
            raise result["error"]
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            reason = StopRequest(job.folder).reason() or "SIGINT"
            note_event(job.folder, "stopped", f"at once ({reason})", signal=reason)
        elif _has_begun(job) or not isinstance(error, DistcifarError):  # a mistake before that ends no run
            note_event(job.folder, "failed", f"{type(error).__name__}: {error}")
        if isinstance(error, DistcifarError):
            discard_if_unused(job.folder)
        raise
    if "stopped" in result:
        reason = StopRequest(job.folder).reason()
        note_event(job.folder, "stopped", f"at step {result['stopped']} ({reason or 'asked to'})", signal=reason)
    return result


def _has_begun(job: Job) -> bool:
    """Whether a worker of this launch has come to its first step."""
    with suppress(OSError):
        return any(event.get("launch") == job.launch for event in read_events(job.folder))
    return True


@contextmanager
def _tracked(job: Job, environment: Mapping[str, str], listen: Listener, announce: Announce) -> Iterator[Listener]:
    """`listen`, and W&B beside it; at the end waits for W&B, not for ever."""
    spec = job.spec
    if spec.wandb == "disabled":
        yield listen
        return
    how = Shipping(spec.wandb, spec.upload, spec.keep_uploads, spec.upload_minutes, os.getpid())
    tracker = Tracker(job.folder, how, environment, announce)

    def both(row: dict[str, Any]) -> None:
        listen(row)
        tracker.listen(row)

    seconds = SHIPPING_SECONDS
    try:
        yield both
    except KeyboardInterrupt:
        seconds = 0.0  # asked for twice
        raise
    finally:
        tracker.close(seconds)


def _telling_start(job: Job, listen: Listener, announce: Announce) -> Listener:
    """`listen`, and before the first step's row a sentence on what the start has taken."""
    told = False

    def both(row: dict[str, Any]) -> None:
        nonlocal told
        if row["kind"] == "step" and not told:
            told = True
            with suppress(OSError):  # storage that is gone is the training's to tell
                startup = read_startup(job.folder)
                if startup is not None and startup["launch"] == job.launch:
                    stages = f": {in_a_line(startup)}" if job.spec.verbose else ""
                    announce(f"First step after {startup['total']:.1f} s{stages}")
        listen(row)

    return both


def _in_thread(action: Callable[[], Fit]) -> "Future[Fit]":
    """What `action` returns or raises, computed beside this thread; the program does not end before it."""
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="imports").submit(action)


def _fitting(spec: RunSpec) -> Fit:
    """The function that trains here or on Ray.

    Torch and Ray are imported for it: seconds, in which the data are checked, as hashing does not need the interpreter.
    """
    if not _is_local(spec):
        from distcifar.cluster.remote import fit_on_ray

        return fit_on_ray
    with _collector_at_rest():
        from distcifar.cluster.local import fit_here
    if not spec.verbose:
        logging.getLogger("ray").setLevel(logging.ERROR)  # after the import, which sets it
    return fit_here


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
