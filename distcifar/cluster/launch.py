"""Recipe + RunSpec -> a finished run: prepared data, a claimed directory, workers in this process or on Ray."""

import gc
import logging
import queue
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distcifar.cluster.facts import collect_facts
from distcifar.cluster.run_folder import claim_run, discard_if_unused
from distcifar.cluster.stopping import StopRequest, stop_on_signals
from distcifar.config import Recipe, RunSpec
from distcifar.data.prepare import prepare
from distcifar.errors import DistcifarError, ResourceError
from distcifar.tracking.journal import JournalFollower

Listener = Callable[[dict[str, Any]], None]
Announce = Callable[[str], None]

FOLLOW_SECONDS = 0.3  # how often the driver looks for new rows of a run on other processes


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
    folder = claim_run(recipe, spec, collect_facts(spec, data.folder, data.digest))
    StopRequest(folder).clear()
    with _collector_at_rest():  # torch and ray.train: seconds, not spent on a mistyped command
        from distcifar.cluster.worker import Job

    if not spec.verbose:
        logging.getLogger("ray").setLevel(logging.ERROR)
    job = Job(recipe, spec, folder, data.folder, data.digest)
    try:
        result = _fit_here(job, listen, announce) if _is_local(spec) else _fit_on_ray(job, listen, announce)
        if "error" in result:
            raise result["error"]
    except DistcifarError:
        discard_if_unused(folder)
        raise
    return RunResult(folder, result.get("summary"), result.get("stopped"))


@contextmanager
def _collector_at_rest() -> Iterator[None]:
    """Without garbage collection, which costs a tenth of a large import: a million objects are made, none freed."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # they live as long as the program: no collection looks at them again
        gc.enable()


def _is_local(spec: RunSpec) -> bool:
    """One worker on this machine: no cluster is started for it (6 s instead of 36 s on two cores)."""
    import torch

    gpus = 0 if spec.device == "cpu" else torch.cuda.device_count()
    if spec.device == "cuda" and not gpus and not spec.address:
        raise ResourceError("This machine has no GPU that torch can use", "--device cuda needs one", "Use --device cpu")
    return not spec.address and (spec.workers == 1 or (spec.workers == 0 and gpus <= 1))


def _fit_here(job: Any, listen: Listener, announce: Announce) -> dict[str, Any]:
    """Ray Train's local mode: the worker function in this process, without a cluster."""
    from ray.train import ScalingConfig
    from ray.train.torch import TorchTrainer

    from distcifar.cluster.worker import train_worker

    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"job": job, "listen": listen},
        scaling_config=ScalingConfig(num_workers=0),
    )
    with stop_on_signals(StopRequest(job.folder), announce):
        return trainer.fit().return_value


def _fit_on_ray(job: Any, listen: Listener, announce: Announce) -> dict[str, Any]:
    """TorchTrainer on workers; fit() in a thread, so that this one follows the journal and takes signals."""
    from distcifar.cluster.session import Workers, ray_session

    with ray_session(job.spec) as workers, stop_on_signals(StopRequest(job.folder), announce):
        announce(f"{workers.count} worker(s) on Ray, {workers.cpus} CPU(s)" + ", 1 GPU each" * workers.gpu)
        answer: queue.Queue[Any] = queue.Queue()

        def run(workers: Workers = workers) -> None:
            try:
                answer.put(_trainer(job, workers).fit().return_value)
            except BaseException as error:
                answer.put(error)

        threading.Thread(target=run, daemon=True).start()
        follower = JournalFollower(job.folder)
        while True:
            try:
                result = answer.get(timeout=FOLLOW_SECONDS)
            except queue.Empty:
                result = None
            for row in follower.new_rows():
                listen(row)
            if result is not None:
                break
    if isinstance(result, BaseException):
        raise _own_error(result)
    return result


def _own_error(error: BaseException) -> BaseException:
    """A worker's DistcifarError out of Ray's wrapping; any other error as it is."""
    failures = getattr(error, "worker_failures", {}).values()
    causes = [cause for failure in failures for cause in (failure, failure.__cause__)]
    return next((cause for cause in causes if isinstance(cause, DistcifarError)), error)


def _trainer(job: Any, workers: Any) -> Any:
    """A TorchTrainer whose attempt name is new each time: Ray's own state never matters (checkpoints are ours)."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig

    from distcifar.cluster.recorder import silence
    from distcifar.cluster.trainer import LeanTorchTrainer
    from distcifar.cluster.worker import train_worker

    return LeanTorchTrainer(
        train_worker,
        train_loop_config={"job": job, "listen": silence},
        torch_config=TorchConfig(backend="nccl" if workers.gpu else "gloo", timeout_s=300),
        scaling_config=ScalingConfig(
            num_workers=workers.count, use_gpu=workers.gpu, resources_per_worker=workers.resources()
        ),
        run_config=RunConfig(
            name=f"attempt-{uuid.uuid4().hex[:8]}",
            storage_path=str(job.folder / "ray"),
            failure_config=FailureConfig(max_failures=job.spec.max_failures),
        ),
    )
