"""Several workers, or a cluster: TorchTrainer, followed through the run's journal."""

import queue
import threading
import uuid
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from typing import Any

import ray
from ray.exceptions import RayActorError

from distcifar.cluster.aside import Answer, answer_of
from distcifar.cluster.job import Announce, Job, Listener
from distcifar.cluster.plain_words import in_plain_words
from distcifar.cluster.session import Workers, ray_session
from distcifar.cluster.stopping import StopRequest, stop_on_signals
from distcifar.cluster.waiting import Lookout, Patience, is_waiting, warn_of_leaks
from distcifar.errors import DistcifarError, RunError
from distcifar.tracking.journal import JournalFollower, note_event

FOLLOW_SECONDS = 0.3  # how often the driver looks for new rows


def fit_on_ray(job: Job, listen: Listener, announce: Announce) -> dict[str, Any]:
    """The primary's answer of `train_worker` (cluster/worker.py).

    When Ray's controller of the workers dies, they die with it, and what they held of the cluster is free only after
    this program has left: it connects anew and starts again.
    """
    announce("Starting workers on Ray; half a minute on two cores")
    for left in reversed(range(job.spec.max_failures + 1)):
        result = _fit_once(job, listen, announce)
        if not isinstance(result, RayActorError) or not left:
            break
        note_event(job.folder, "failure", "Ray's controller died")
        announce("Ray's controller died: starting it and the workers again")
    if isinstance(result, BaseException):
        raise own_error(result)
    return result


def _fit_once(job: Job, listen: Listener, announce: Announce) -> Any:
    """One connection to Ray and what came of it: the answer, or what was raised.

    Ray's fit() runs in a thread, so that this one can follow the journal and take signals; torch is imported in
    another while Ray's processes start.
    """
    loading = threading.Thread(target=import_module, args=("distcifar.cluster.trainer",), daemon=True)
    loading.start()
    with ray_session(job.spec) as workers, stop_on_signals(StopRequest(job.folder), announce):
        loading.join()
        job = replace(job, startup=job.startup.ended("Ray"))
        warn_of_leaks(announce)
        announce(f"{workers.count} worker(s) with {workers.cpus} CPU(s)" + " and a GPU" * workers.gpu)
        return _followed(job, workers, answer_of(lambda: fit_workers(job, workers)), listen, announce)


def _followed(job: Job, workers: Workers, answer: Answer, listen: Listener, announce: Announce) -> Any:
    """Tells the journal's new rows until there is an answer; and what the workers wait for where they do."""
    follower, result = JournalFollower(job.folder), None
    request = StopRequest(job.folder)
    patience, lookout = Patience(workers, job.spec.wait_minutes, announce), Lookout()
    while result is None:
        try:
            result = answer.get(timeout=FOLLOW_SECONDS)
        except queue.Empty:
            result = None
        for row in follower.new_rows():
            listen(row)
            patience.sign_of_life()
        if result is None:
            for words in lookout.lost():
                note_event(job.folder, "node lost", words)
            patience.look()
            if request.made() and is_waiting(workers, ray.cluster_resources()):
                raise KeyboardInterrupt  # there is nobody who could save anything, or see the request
    return result


def fit_workers(job: Job, workers: Workers) -> Any:
    """The workers' answer; of a cluster that this process is connected to."""
    from distcifar.cluster.trainer import make_trainer, prestart_coordinator

    attempt = f"attempt-{uuid.uuid4().hex[:8]}"  # new each time: Ray's own state never matters, checkpoints are ours
    prestart_coordinator()
    return make_trainer(job, workers, attempt).fit().return_value


def own_error(error: BaseException) -> BaseException:
    """What to tell of a failed fit(): a worker's DistcifarError, known words for its cause, or what each has raised."""
    failures: dict[int, BaseException] = getattr(error, "worker_failures", {})
    causes = [cause for failure in failures.values() for cause in (failure, failure.__cause__)]
    own = next((cause for cause in causes if isinstance(cause, DistcifarError)), None)
    if own is not None:
        return own
    told = next(filter(None, map(in_plain_words, [*failures.values(), error])), None) or _told(failures)
    if told is None:
        return error
    told.__cause__ = error
    return told


def _told(failures: Mapping[int, BaseException]) -> RunError | None:
    """What the workers have raised, in short; None where it was not they who failed."""
    if not failures:
        return None
    words = "; ".join(f"rank {rank}: {_last_line(failure)}" for rank, failure in sorted(failures.items()))
    return RunError(
        f"The workers failed more often than --max-failures allows, at last with {words}",
        "A run whose workers keep failing is given up",
        "Mend the cause and type the same command to go on; --debug shows the whole traceback",
    )


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"
