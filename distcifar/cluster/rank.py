"""What one rank of a run does, from its data to the result. Every object of a training is built here.

A generator of epochs, as the engine below it is one of reports: whoever runs it tells Ray of them (worker.py), waits
for a scheduler's decision (sweeps/trial.py), or goes on at once. Nothing here knows of Ray.
"""

import platform
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import torch

from distcifar.cluster.agreement import agreed, alone
from distcifar.cluster.balance import by_speed
from distcifar.cluster.hardware import Meter
from distcifar.cluster.job import Job, Listener
from distcifar.cluster.memory import halved_microbatch, known_microbatch
from distcifar.cluster.recorder import Recorder, RunRecorder
from distcifar.cluster.stopping import StopRequest
from distcifar.cluster.watchdog import Pulse, mark_of
from distcifar.data.build import OpenData, open_data
from distcifar.errors import CheckpointError, DistcifarError, DivergenceError, ResourceError
from distcifar.tracking.journal import note_event
from distcifar.tracking.startup import FirstStep
from distcifar.training.allocator import return_freed_memory
from distcifar.training.build import build_state, first_images
from distcifar.training.checkpoint import Checkpoint, load_checkpoint, newest_good
from distcifar.training.compiled import compile_in_question, resolve_compile, steps_left
from distcifar.training.engine import fit
from distcifar.training.precision import resolve_precision
from distcifar.training.reports import REPORT_SECONDS, EpochReport, FitOptions, Pace, Report
from distcifar.training.state import TrainState
from distcifar.training.summary import summarise
from distcifar.world import World

AfterEpoch = Callable[[dict[str, float]], None]  # is given each epoch's metrics, on every rank
Epochs = Generator[dict[str, float], None, dict[str, Any]]  # their metrics; returns the result
Opener = Callable[[Job, World], OpenData]

GPU_ASK_BATCHES = 20  # of an evaluation: to ask whether to stop makes the host wait for the GPU
DETERMINISTIC = (
    "only kernels that give the same bits each time, cuDNN tries none for speed, and compile auto is off."
    " Costs five seconds of start and no speed on a CPU; on a GPU it is slower"
)
ROLLBACKS = 3


def train_rank(job: Job, world: World, *, listen: Listener, after_epoch: AfterEpoch) -> dict[str, Any]:
    """Trains on this rank to the end: what `rank_epochs` returns; `after_epoch` is given each epoch's metrics."""
    result: dict[str, Any] = {}

    def epochs() -> Iterator[dict[str, float]]:
        nonlocal result
        result = yield from rank_epochs(job, world, listen=listen)

    with closing(epochs()) as found:  # type: ignore[type-var]  # a generator
        for metrics in found:
            after_epoch(metrics)
    return result


def rank_epochs(job: Job, world: World, *, listen: Listener, opener: Opener | None = None) -> Epochs:
    """Trains on this rank, yielding each epoch's metrics; who closes it leaves a run that can go on.

    Returns {"summary": ...}, {"stopped": step}, or {"error": DistcifarError}: what a user can mend, and diverged
    training, are returned by all ranks alike; any other error is noted in the run's events and raised. `opener`: reads
    the data instead of open_data, to keep them between trainings.
    """
    recorder = Recorder()
    try:
        with Pulse(job.folder, world, job.spec.hang_seconds) as pulse:
            data = agreed(world, lambda: _opened(job, world, opener or _open, pulse))
            recorder = agreed(world, lambda: _recorder(job, world, data, listen))
            pulse.belong(_mark(job, world, recorder))
            pulse.enter("restoring", 0)
            first = FirstStep(job.startup.ended("data"), lambda: _wait_for(world.device), recorder.started)
            with Meter(job.folder, world):
                return (yield from _train_sound(job, world, data, recorder, Stages(pulse, first)))
    except DistcifarError as error:
        return {"error": error}
    except Exception as error:
        text = f"rank {world.rank} on {platform.node()}: {type(error).__name__}: {error}"
        note_event(job.folder, "failure", text)
        raise
    finally:
        recorder.close()


def _open(job: Job, world: World) -> OpenData:
    threads = job.spec.loader_threads or torch.get_num_threads()
    return job.opened_data(lambda folder: open_data(job.recipe, folder, world, mode=job.spec.loader, threads=threads))


def _opened(job: Job, world: World, opener: Opener, pulse: Pulse) -> OpenData:
    """The data. A rank that has them and waits for the others is not the one that holds them up."""
    pulse.enter("opening", 0)
    data = opener(job, world)
    pulse.enter("meeting", 0)
    return data


def _mark(job: Job, world: World, recorder: Recorder) -> str:
    """The group's mark in the run directory. From the primary itself: a network file system shows others old files."""
    mark = world.first(recorder.mark or None)
    return (mark_of(job.folder) if job.store else mark) or ""


def _recorder(job: Job, world: World, data: OpenData, listen: Listener) -> Recorder:
    return RunRecorder(job, data, world.size, listen) if world.is_primary else Recorder()


def _wait_for(device: torch.device) -> None:
    """Returns when `device` has computed what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Stages:
    """Who is told where this rank is."""

    pulse: Pulse
    first: FirstStep

    def enter(self, stage: str, step: int) -> None:
        """The training thread enters `stage` of `step`."""
        self.pulse.enter(stage, step)
        self.first.enter(stage)


def _train_sound(job: Job, world: World, data: OpenData, recorder: Recorder, stages: Stages) -> Epochs:
    """Trains; after a divergence, where the recipe says so, again from a checkpoint with a lower rate."""
    attempt = Attempt()
    while True:
        state, before, damaged = _restored(job, world, data, attempt)
        agreed(world, lambda: recorder.begin(state, before, damaged, attempt.cause))  # noqa: B023 (called at once)
        attempt = replace(attempt, began=state.progress.step)
        stages.first.ended("model")
        return_freed_memory()
        try:
            with alone(world):
                data = by_speed(job, world, data, state, recorder)
            return (yield from _train(job, world, data, state, recorder, stages))
        except DivergenceError as error:
            if job.recipe.on_divergence == "stop" or state.progress.rollbacks >= ROLLBACKS:
                raise
            # Without its traceback, which would keep the old state alive beside the new one.
            attempt = attempt.after(error.with_traceback(None), state.progress.rollbacks)
        except torch.OutOfMemoryError:
            _halve(job, world, data.loaders.train.images)
        recorder.drain()
        del state


@dataclass(frozen=True)
class Attempt:
    """What is to be different when training begins again after a divergence."""

    cause: DivergenceError | None = None
    rollbacks: int = 0
    began: int | None = None  # the step at which this one began
    in_vain: tuple[int, ...] = ()  # checkpoints that were gone back to and led to a divergence again

    def after(self, cause: DivergenceError, rollbacks: int) -> "Attempt":
        """The next one; if this one had gone back as well, its checkpoint's weights may have been bad already."""
        passed = () if self.cause is None or self.began is None else (*self.in_vain, self.began)
        return Attempt(cause, rollbacks + 1, None, passed)


def _halve(job: Job, world: World, images: int) -> None:
    """After a lack of memory: smaller parts. Of several ranks this one alone has met it, so Ray starts all again."""
    try:
        halved_microbatch(job, world, images)
    except ResourceError as error:
        if world.size > 1:
            raise RuntimeError(str(error)) from error
        raise
    if world.size > 1:
        raise RuntimeError("out of memory: starting again with smaller parts of the batch")
    if world.device.type == "cuda":
        torch.cuda.empty_cache()


Restored = tuple[TrainState, int, list[CheckpointError]]


def _restored(job: Job, world: World, data: OpenData, attempt: Attempt) -> Restored:
    """The state at the newest good checkpoint, which the primary chooses for all; else a fresh one.

    Also the number of workers that had saved it (now's, for a fresh one), and what was wrong with newer ones.
    """
    root = job.folder / "checkpoints"
    state = agreed(world, lambda: build_state(job.recipe, data, job.data_digest, world))
    found: tuple[Checkpoint | None, list[CheckpointError]] = (None, [])
    found = agreed(world, lambda: newest_good(root, but=attempt.in_vain) if world.is_primary else found)
    checkpoint, damaged = found
    mine = (checkpoint.folder.name if checkpoint else "") if world.is_primary else None
    name = world.first(mine)
    if not name:
        images = first_images(data, job.recipe.batch_size)
        state.set_precision(resolve_precision(job.recipe.precision, state.model, images, world))
        state.progress.rollbacks = attempt.rollbacks
        return state, world.size, damaged
    loaded = agreed(world, lambda: checkpoint or load_checkpoint(root / name))
    loaded.restore(state)
    state.progress.rollbacks = max(attempt.rollbacks, state.progress.rollbacks)
    if state.progress.outcome == "finished" and state.progress.epoch < job.recipe.total_epochs:
        state.progress.outcome = ""  # the recipe was given more epochs
    return state, loaded.scalars["workers"], damaged


def _train(job: Job, world: World, data: OpenData, state: TrainState, recorder: Recorder, stages: Stages) -> Epochs:
    options = _options(job, world, data, state, recorder, stages)
    for report in _guarded(world, fit(job.recipe, state, data.loaders, world, options)):
        recorder.record(report)
        if isinstance(report, EpochReport):
            if not job.measure:  # a search is told of it, and what it was told is not trained again
                _require_recorded(recorder, world)
            yield report.metrics()
        elif report.stopping:
            return _stopped(state, recorder, world)
    if not job.measure:
        return _stopped(state, recorder, world)
    _require_recorded(recorder, world)
    return_freed_memory()
    with alone(world):
        result = summarise(state, data, world, interrupted=options.interrupted)
    if result is None:
        return _stopped(state, recorder, world)
    return_freed_memory()  # plots come next
    summary = recorder.finish(result)
    _require_recorded(recorder, world)
    return {"summary": summary}


def _options(
    job: Job, world: World, data: OpenData, state: TrainState, recorder: Recorder, stages: Stages
) -> FitOptions:
    """How this rank trains, as all of them do; the user is told what is out of the ordinary. A collective."""
    if job.spec.deterministic:
        recorder.tell("deterministic", DETERMINISTIC)
    stop = StopRequest(job.folder)
    return FitOptions(
        pace=Pace(REPORT_SECONDS),
        ask_batches=GPU_ASK_BATCHES if world.device.type == "cuda" else 1,
        checkpoint_steps=job.spec.checkpoint_steps,
        should_stop=lambda: stop.made() or recorder.problem is not None,
        on_stage=stages.enter,
        microbatch=known_microbatch(job),
        compile=_compiles(job, world, data, state, recorder),
    )


def _compiles(job: Job, world: World, data: OpenData, state: TrainState, recorder: Recorder) -> bool:
    """Whether the training step is compiled, as all ranks agree; where it was a question, the user is told."""
    recipe, wanted = job.recipe, job.spec.compile
    if not compile_in_question(wanted, world.device, deterministic=job.spec.deterministic):
        return False
    images = first_images(data, data.loaders.train.images)
    steps = steps_left(recipe, state.progress, data.loaders.train)
    precision = state.progress.precision
    compiled, words = agreed(world, lambda: resolve_compile(wanted, state.model, images, precision, world, steps))
    if words:
        recorder.tell("compile", words)
    return compiled


def _guarded(world: World, reports: Iterator[Report]) -> Iterator[Report]:
    with alone(world):
        yield from reports


def _stopped(state: TrainState, recorder: Recorder, world: World) -> dict[str, Any]:
    _require_recorded(recorder, world)
    return {"stopped": state.progress.step}


def _require_recorded(recorder: Recorder, world: World) -> None:
    """Waits for the disk; raises on all ranks what has kept the primary from recording. A collective."""
    recorder.drain()
    problem = world.first(recorder.problem)
    if problem is not None:
        raise problem
